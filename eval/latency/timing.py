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

from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.transcriber import Transcriber
from eval.latency.operator_placement import operator_placement
from eval.runtimes.interface import Generator, Runtime
from eval.runtimes.process_memory import peak_rss_mb
from eval.runtimes.registry import open_runtime
from recipes.core.machine import end_with_parent

CACHES = (10, 200)
"""Tokens in the decoder's cache at which a token is timed."""


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


def measure_system(task: dict[str, Any]) -> dict[str, Any]:
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
    mel, whole, tokens = [], [], 0
    for index in range(task["runs"]):
        clip = clips[index % len(clips)]
        started = time.perf_counter()
        features = transcriber.features([clip])
        mel.append(time.perf_counter() - started)
        (transcript,) = transcriber.decode(features, **options)
        whole.append(time.perf_counter() - started - timed.aside)
        tokens += len(transcript.tokens)
    seconds = [len(clips[index % len(clips)]) / SAMPLE_RATE for index in range(task["runs"])]
    first = [sum(parts) for parts in zip(mel, timed.encoder, timed.prompt, strict=True)]
    figures: dict[str, Any] = {
        "cold_s": cold_s,
        "mel_ms": _spread(mel),
        "encoder_ms": _spread(timed.encoder),
        "prompt_ms": _spread(timed.prompt),
        "first_token_ms": _spread(first),
        "token_ms": _spread(timed.token),
        "clip_ms": _spread(whole),
        "rtf": sum(whole) / sum(seconds),
        "peak_rss_mb": peak_rss_mb(),
        "audio_s": sum(seconds),
        "tokens": tokens,
        "noise": pass_to_pass_range(whole, seconds, len(clips)),
    }
    if task["details"]:  # last: what they take in memory belongs to no figure above
        figures["token_at_cache"] = [
            token_at(cache, transcriber, timed, clips[0], rounds=1 + task["runs"] // 25) for cache in CACHES
        ]
        figures["placement"] = operator_placement(task, transcriber, clips[0])
    return figures


def pass_to_pass_range(whole: list[float], seconds: list[float], clips: int) -> dict[str, list[float]] | None:
    """Least and largest value of the figures that budgets limit, over whole passes through the clips.

    Every pass has the same clips, so that they differ by the machine alone. None for less than two passes.
    """
    passes = [slice(start, start + clips) for start in range(0, len(whole) - clips + 1, clips)]
    if len(passes) < 2:
        return None
    p50, p95 = np.array([np.percentile(whole[each], [50, 95]) for each in passes]).T * 1e3
    rtf = [sum(whole[each]) / sum(seconds[each]) for each in passes]
    return {
        name: [float(min(values)), float(max(values))]
        for name, values in (("clip_p50_ms", p50), ("clip_p95_ms", p95), ("rtf", rtf))
    }


def token_at(
    cache: int, transcriber: Transcriber, timed: TimedRuntime, clip: np.ndarray, rounds: int
) -> dict[str, float]:
    """Milliseconds of one token with `cache` tokens before it, or as many as the model holds; the number used beside.

    Of a runtime that steps, the median of the five tokens around the place. Of one that does not, the least time of a
    text that ends before it is taken from that of one that ends after it: medians of few can come out the wrong way
    round on a busy machine.
    """
    shape, mel_BFT = transcriber.format, transcriber.features([clip])
    looped, prompt = isinstance(timed, TimedGenerator), len(shape.prompt)
    room = min(shape.max_length, getattr(timed.runtime, "max_tokens", shape.max_length)) - prompt
    around = 2 * min(cache - prompt, 20) if looped else 5
    # The n-th token after the first is made with the prompt and n - 1 more in the cache.
    end = min(cache - prompt + 1 + (around + 1) // 2, room)
    reached = prompt + end - 1 - (around + 1) // 2
    if isinstance(timed, TimedGenerator):
        spent = [_seconds(timed.runtime, transcriber, mel_BFT, (end - around, end)) for _ in range(3 * rounds)]
        before, after = np.min(spent, axis=0)
        return {"cache": reached, "ms": 1e3 * float(after - before) / around}
    samples: list[float] = []
    for _ in range(rounds):
        timed.token = []
        transcriber.decode(mel_BFT, exact_tokens=end)
        samples += timed.token[-around:]
    return {"cache": reached, "ms": 1e3 * float(np.median(samples))}


def _seconds(runtime: Generator, transcriber: Transcriber, mel_BFT: np.ndarray, limits: tuple[int, ...]) -> list[float]:
    """Of generating exactly so many tokens, for each of the limits."""
    shape, state, spent = transcriber.format, runtime.encode(mel_BFT), []
    for limit in limits:
        started = time.perf_counter()
        runtime.generate(
            state, shape.prompt, limit, end=shape.end, suppress=[*shape.suppress, shape.end],
            suppress_first=shape.suppress_first,
        )  # fmt: skip
        spent.append(time.perf_counter() - started)
    return spent


def _spread(seconds: list[float]) -> dict[str, float] | None:
    """p50, p95 and maximum in milliseconds; None when nothing was timed."""
    if not seconds:
        return None
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"p50": 1e3 * float(p50), "p95": 1e3 * float(p95), "max": 1e3 * max(seconds)}


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(measure_system(json.load(sys.stdin))))
