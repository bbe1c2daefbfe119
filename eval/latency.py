"""One variant measured in this process; started afresh for each by eval/benchmark.py.

Reads its task as JSON from stdin and prints one JSON line. Nothing heavy is imported before the clock of the cold
start runs, and of the runtimes only the one measured.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from eval.audio import read_audio
from eval.runtimes import open_runtime
from eval.runtimes.transcriber import Generator, Runtime, Transcriber


class TimedRuntime:
    """Passes calls on and keeps their durations in seconds."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.encoder: list[float] = []
        self.prompt: list[float] = []
        self.token: list[float] = []
        self.aside = 0.0
        """Spent on measuring in the last clip, no part of its transcription."""

    def encode(self, mel_BFT: np.ndarray) -> Any:
        """Timed `Runtime.encode`."""
        started = time.perf_counter()
        state = self.runtime.encode(mel_BFT)
        self.encoder.append(time.perf_counter() - started)
        return state

    def step(self, tokens_BL: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """Timed `Runtime.step`: the prompt, then one token a call."""
        started = time.perf_counter()
        result = self.runtime.step(tokens_BL, state)
        (self.token if tokens_BL.shape[1] == 1 else self.prompt).append(time.perf_counter() - started)
        return result


class TimedGenerator(TimedRuntime):
    """The same for a runtime whose decoding loop cannot be looked into.

    Each clip is generated once more up to its first token: that is the prompt's time. The rest of the clip's time,
    divided by its other tokens, is one token's: p95 and maximum are those of clip means, not of single tokens.
    """

    runtime: Generator

    def generate(self, state: Any, prompt: list[int], limit: int, **options: Any) -> list[tuple[list[int], float]]:
        """Timed `Generator.generate`."""
        started = time.perf_counter()
        made = self.runtime.generate(state, prompt, limit, **options)
        ended = time.perf_counter()
        self.runtime.generate(state, prompt, 1, **options)
        self.aside = time.perf_counter() - ended
        self.prompt.append(self.aside)
        if (rest := max(len(tokens) for tokens, _ in made) - 1) > 0:
            self.token.append((ended - started - self.aside) / rest)
        return made

    def along(self, state: Any, prompt: list[int], tokens: list[int]) -> list[np.ndarray]:
        """`Generator.along`, untimed."""
        return self.runtime.along(state, prompt, tokens)


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Cold start, then `warmup` untimed and `runs` timed transcriptions, one clip at a time."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    clips = [read_audio(audio) for audio in task["clips"]]
    options = {"exact_tokens": task["tokens"]}
    started = time.perf_counter()
    folder = Path(task["folder"])
    runtime = open_runtime(task["runtime"], folder, task["precision"], task["threads"])
    timed = (TimedGenerator if isinstance(runtime, Generator) else TimedRuntime)(runtime)
    transcriber = Transcriber(timed, folder, task["language"], task["task"])
    transcriber.transcribe(clips[:1], **options)
    cold_s = time.perf_counter() - started - timed.aside

    for index in range(task["warmup"]):
        transcriber.transcribe([clips[index % len(clips)]], **options)
    timed.encoder, timed.prompt, timed.token = [], [], []
    mel, whole, audio_s, tokens = [], [], 0.0, 0
    for index in range(task["runs"]):
        clip = clips[index % len(clips)]
        started = time.perf_counter()
        features = transcriber.features([clip])
        mel.append(time.perf_counter() - started)
        (transcript,) = transcriber.decode(features, **options)
        whole.append(time.perf_counter() - started - timed.aside)
        audio_s += len(clip) / 16_000
        tokens += len(transcript.tokens)
    first = [sum(parts) for parts in zip(mel, timed.encoder, timed.prompt, strict=True)]
    return {
        "cold_s": cold_s,
        "mel_ms": _spread(mel),
        "encoder_ms": _spread(timed.encoder),
        "first_token_ms": _spread(first),
        "token_ms": _spread(timed.token),
        "clip_ms": _spread(whole),
        "rtf": sum(whole) / audio_s,
        "peak_rss_mb": peak_rss_mb(),
        "audio_s": audio_s,
        "tokens": tokens,
    }


def peak_rss_mb() -> float:
    """Peak resident memory of this program, 10^6 bytes.

    Not getrusage's ru_maxrss: that survives exec on Linux, so a small program reports its parent's peak.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status has no VmHWM line")


def _spread(seconds: list[float]) -> dict[str, float] | None:
    """p50, p95 and maximum in milliseconds; None when nothing was timed."""
    if not seconds:
        return None
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"p50": 1e3 * float(p50), "p95": 1e3 * float(p95), "max": 1e3 * max(seconds)}


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
