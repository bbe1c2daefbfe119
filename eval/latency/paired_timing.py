"""Two variants in turn, clip by clip: a ratio that a machine's changing speed does not touch.

Measured one after the other, minutes apart, two variants met different machines: on a shared host the same artefact was
15.6 and 23.2 ms a clip within ten minutes. Here both wait in processes of their own, and each clip goes to one and at
once to the other, which first alternating; of each clip the quotient is taken.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import open_runtime
from recipes.core.errors import RunError
from recipes.core.machine import threads_environment

REST_S = 0.005
"""Between turns: threads of the one that is done may still be spinning for more work."""
WAKE_S = 0.015
"""A clip is repeated for so long before the one that counts, for rest puts the processor to sleep: two threads took 3.4
ms without any, 6.0 after 5 ms and 8.1 after 20 (alnum-micro in int8; the teacher 30 ms always)."""


class ClipPlayer:
    """A process that transcribes a clip when asked to."""

    def __init__(self, process: "subprocess.Popen[str]", name: str):
        self._process, self.name = process, name

    def ready(self) -> None:
        """Wait for its warm-up to end."""
        self._answer()

    def __call__(self, clip: int) -> float:
        """Seconds that the clip of this number took."""
        time.sleep(REST_S)
        assert self._process.stdin is not None
        print(clip, file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        raise RunError(f"benchmark: {self.name} ended with status {self._process.wait()} while it took turns")


@contextmanager
def open_player(task: Mapping[str, Any], name: str, module: str = "eval.latency.paired_timing") -> Iterator[ClipPlayer]:
    """A variant's process, as `eval.benchmark` describes it in its task."""
    process = subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=threads_environment(task["threads"]),
    )  # fmt: skip
    try:
        assert process.stdin is not None
        print(json.dumps(task), file=process.stdin, flush=True)
        (opened := ClipPlayer(process, name)).ready()
        yield opened
    finally:
        process.kill()
        process.communicate()


def time_ratios(first: ClipPlayer, second: ClipPlayer, clips: int, turns: int) -> np.ndarray:
    """The first one's seconds over the second one's, [turns]."""
    first_N, second_N = time_in_turn(first, second, clips, turns)
    return first_N / second_N


def time_in_turn(first: ClipPlayer, second: ClipPlayer, clips: int, turns: int) -> np.ndarray:
    """Seconds of both, [2, turns]."""
    found = []
    for turn in range(turns):
        order = (first, second) if turn % 2 == 0 else (second, first)
        spent = {each: each(turn % clips) for each in order}
        found.append((spent[first], spent[second]))
    return np.array(found).T


def median_interval(values: Sequence[float] | np.ndarray, resamples: int = 2000) -> dict[str, float]:
    """With its 95 % bootstrap interval."""
    draw = np.random.default_rng(0).choice(np.asarray(values), (resamples, len(values)))
    low, high = np.percentile(np.median(draw, axis=1), [2.5, 97.5])
    return {"value": float(np.median(values)), "low": float(low), "high": float(high)}


def serve_clips(task: dict[str, Any]) -> None:
    """Warm up, then answer each clip's number with the seconds it took."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    clips = [read_audio(audio) for audio in task["clips"]]
    folder, options = Path(task["folder"]), {"exact_tokens": task["tokens"]}
    runtime = open_runtime(task["runtime"], folder, task["precision"], task["threads"])
    transcriber = Transcriber(runtime, folder, task["language"], task["task"])
    for clip in range(task["warmup"]):
        transcriber.transcribe([clips[clip % len(clips)]], **options)
    print("ready", flush=True)
    for line in sys.stdin:
        print(awake_seconds(partial(transcriber.transcribe, [clips[int(line)]], **options)), flush=True)


def awake_seconds(play: Callable[[], object]) -> float:
    """Seconds that a play takes on a processor that has not just slept."""
    woken = time.perf_counter()
    while True:
        started = time.perf_counter()
        play()
        spent = time.perf_counter() - started
        if started - woken >= WAKE_S or spent >= 20 * WAKE_S:
            return spent


if __name__ == "__main__":
    serve_clips(json.loads(sys.stdin.readline()))
