"""Measure one system in this process: `eval.benchmark` starts a new process for each.

The process reads a `MeasuringTask` as JSON from stdin and prints a `SystemTiming` as one line of JSON. Of the runtimes
only the one that is measured is imported, and it is imported while the clock of the cold start runs.

B batch, F mel bins, T mel frames, L tokens, V vocabulary.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.transcriber import Transcriber
from eval.latency.latency_rows import MeasuringTask, Percentiles, SystemTiming, TokenAtCache
from eval.latency.operator_placement import operator_placement
from eval.runtimes.interface import Generator, Runtime
from eval.runtimes.process_memory import peak_rss_mb
from eval.runtimes.registry import open_runtime
from recipes.core.machine import end_with_parent

CACHE_LENGTHS = (10, 200)
"""Numbers of tokens in the decoder's cache at which a decoder step is timed."""


class TimedRuntime:
    """A `Runtime` that records how long each call takes, in seconds."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.encoder: list[float] = []
        """Durations of `encode`."""
        self.prompt: list[float] = []
        """Durations of the decoder calls that read the prompt."""
        self.token: list[float] = []
        """Durations of all later decoder steps."""
        self.overhead = 0.0
        """Time in the last clip that was spent on measuring, not on transcribing."""

    def encode(self, mel_BFT: np.ndarray) -> Any:
        """Call `Runtime.encode` and record its duration."""
        started = time.perf_counter()
        state = self.runtime.encode(mel_BFT)
        self.encoder.append(time.perf_counter() - started)
        return state

    def step(self, tokens_BL: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """Call `Runtime.step` and record its duration; a call with several tokens is the prompt."""
        started = time.perf_counter()
        result = self.runtime.step(tokens_BL, state)
        (self.token if tokens_BL.shape[1] == 1 else self.prompt).append(time.perf_counter() - started)
        return result


class TimedGenerator(TimedRuntime):
    """The same for a `Generator`, whose decoding loop runs inside the library and cannot be timed step by step.

    Each clip is decoded a second time up to its first token; this is the duration of the prompt. The remaining time of
    the clip divided by its remaining tokens is the duration of one step. The 95th percentile and maximum of the steps
    are therefore those of means over clips, not of single steps.
    """

    runtime: Generator

    def generate(self, state: Any, prompt: list[int], limit: int, **options: Any) -> list[tuple[list[int], float]]:
        """Call `Generator.generate` and record its durations."""
        started = time.perf_counter()
        rows = self.runtime.generate(state, prompt, limit, **options)
        ended = time.perf_counter()
        self.runtime.generate(state, prompt, 1, **options)
        self.overhead = time.perf_counter() - ended
        self.prompt.append(self.overhead)
        if (later_tokens := max(len(tokens) for tokens, _ in rows) - 1) > 0:
            self.token.append((ended - started - self.overhead) / later_tokens)
        return rows

    def forced_logits(self, state: Any, prompt: list[int], tokens: list[int]) -> list[np.ndarray]:
        """Call `Generator.forced_logits` without timing it."""
        return self.runtime.forced_logits(state, prompt, tokens)


def measure_system(task: MeasuringTask) -> SystemTiming:
    """Time the cold start, then `warmup` untimed and `runs` timed transcriptions, one clip at a time."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    clips = [read_audio(audio) for audio in task.clips]
    options: dict[str, Any] = {"exact_tokens": task.tokens}
    # 1. Cold start: load the model and transcribe one clip.
    started = time.perf_counter()
    folder = Path(task.folder)
    runtime = open_runtime(task.runtime, folder, task.precision, task.threads)
    timed = (TimedGenerator if isinstance(runtime, Generator) else TimedRuntime)(runtime)
    transcriber = Transcriber(timed, folder, task.language, task.task)
    transcriber.transcribe(clips[:1], **options)
    cold_s = time.perf_counter() - started - timed.overhead
    # 2. Warm-up.
    for index in range(task.warmup):
        transcriber.transcribe([clips[index % len(clips)]], **options)
    timed.encoder, timed.prompt, timed.token = [], [], []
    # 3. Timed transcriptions.
    mel_s, clip_s, tokens = [], [], 0
    for index in range(task.runs):
        started = time.perf_counter()
        features = transcriber.features([clips[index % len(clips)]])
        mel_s.append(time.perf_counter() - started)
        (transcript,) = transcriber.decode(features, **options)
        clip_s.append(time.perf_counter() - started - timed.overhead)
        tokens += len(transcript.tokens)
    audio_s = [len(clips[index % len(clips)]) / SAMPLE_RATE for index in range(task.runs)]
    first_token_s = [sum(parts) for parts in zip(mel_s, timed.encoder, timed.prompt, strict=True)]
    peak_mb, encoder_s, prompt_s, token_s = peak_rss_mb(), timed.encoder, timed.prompt, timed.token
    # 4. Details last, since the memory that they take must not count in the peak above.
    token_at_cache = placement = None
    if task.details:
        rounds = 1 + task.runs // 25
        token_at_cache = [token_at(length, transcriber, timed, clips[0], rounds) for length in CACHE_LENGTHS]
        placement = operator_placement(task, transcriber, clips[0])
    return SystemTiming(
        cold_s=cold_s, mel_ms=percentiles(mel_s), encoder_ms=percentiles(encoder_s), prompt_ms=percentiles(prompt_s),
        first_token_ms=percentiles(first_token_s), token_ms=percentiles(token_s) if token_s else None,
        clip_ms=percentiles(clip_s), rtf=sum(clip_s) / sum(audio_s), peak_rss_mb=peak_mb, audio_s=sum(audio_s),
        tokens=tokens, noise=pass_to_pass_range(clip_s, audio_s, len(clips)), token_at_cache=token_at_cache,
        placement=placement,
    )  # fmt: skip


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Return median, 95th percentile and maximum of durations in seconds, in milliseconds."""
    p50, p95 = np.percentile(seconds, [50, 95])
    return Percentiles(1e3 * float(p50), 1e3 * float(p95), 1e3 * max(seconds))


def pass_to_pass_range(
    clip_s: Sequence[float], audio_s: Sequence[float], clips: int
) -> dict[str, tuple[float, float]] | None:
    """Return the lowest and highest `clip_p50_ms`, `clip_p95_ms` and `rtf` of whole passes through the clips.

    All passes have the same clips, so they differ only by the noise of the machine. None for less than two passes.

    Args:
        clip_s: Duration of each timed transcription, in seconds.
        audio_s: Duration of the audio of each, in seconds.
        clips: Number of clips in a pass.
    """
    passes = [slice(start, start + clips) for start in range(0, len(clip_s) - clips + 1, clips)]
    if len(passes) < 2:
        return None
    p50, p95 = np.array([np.percentile(clip_s[part], [50, 95]) for part in passes]).T * 1e3
    rtf = [sum(clip_s[part]) / sum(audio_s[part]) for part in passes]
    return {
        key: (float(min(values)), float(max(values)))
        for key, values in (("clip_p50_ms", p50), ("clip_p95_ms", p95), ("rtf", rtf))
    }


def token_at(length: int, transcriber: Transcriber, timed: TimedRuntime, clip: np.ndarray, rounds: int) -> TokenAtCache:
    """Time one decoder step with `length` tokens in the cache, or with as many as the model can hold.

    For a runtime that decodes step by step, this is the median of the five steps around that length. For a `Generator`
    it is the difference between decoding a text that ends before that length and one that ends after it, each in the
    shortest of its times: medians of a few runs can come out in the wrong order on a busy machine.
    """
    form, mel_BFT = transcriber.format, transcriber.features([clip])
    prompt = len(form.prompt)
    max_tokens = min(form.max_length, getattr(timed.runtime, "max_tokens", form.max_length)) - prompt
    window = 2 * min(length - prompt, 20) if isinstance(timed, TimedGenerator) else 5
    # The n-th token after the first is generated with the prompt and n - 1 more tokens in the cache.
    end = min(length - prompt + 1 + (window + 1) // 2, max_tokens)
    reached = prompt + end - 1 - (window + 1) // 2
    if isinstance(timed, TimedGenerator):
        runs = [_generate_seconds(timed.runtime, transcriber, mel_BFT, (end - window, end)) for _ in range(3 * rounds)]
        before, after = np.min(runs, axis=0)
        return TokenAtCache(reached, 1e3 * float(after - before) / window)
    steps: list[float] = []
    for _ in range(rounds):
        timed.token = []
        transcriber.decode(mel_BFT, exact_tokens=end)
        steps += timed.token[-window:]
    return TokenAtCache(reached, 1e3 * float(np.median(steps)))


def _generate_seconds(
    runtime: Generator, transcriber: Transcriber, mel_BFT: np.ndarray, counts: tuple[int, ...]
) -> list[float]:
    """Return the time in seconds to generate exactly as many tokens as each of `counts`."""
    form, state, seconds = transcriber.format, runtime.encode(mel_BFT), []
    for count in counts:
        started = time.perf_counter()
        runtime.generate(
            state, form.prompt, count, end=form.end, suppress=[*form.suppress, form.end],
            suppress_first=form.suppress_first,
        )  # fmt: skip
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(asdict(measure_system(MeasuringTask(**json.load(sys.stdin))))))
