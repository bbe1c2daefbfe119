"""Two systems, each in a process of its own, play the same clips alternately: their ratio of times is robust to noise.

Measured one after the other, minutes apart, two systems meet different conditions: on a shared host the same artefact
took 15.6 and 23.2 ms a clip within ten minutes. Here both processes are loaded and wait. Each clip goes to one process
and immediately afterwards to the other; which of them is first alternates. The ratio is taken clip by clip.

Run as a module, this file is such a process: it reads a `MeasuringTask` as JSON from the first line of stdin, then
clip numbers, and prints the seconds that each clip took.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.latency.latency_rows import MeasuringTask
from eval.runtimes.registry import open_runtime
from recipes.core.errors import RunError
from recipes.core.machine import threads_environment

REST_S = 0.005
"""Pause between turns: threads of the process that has just finished may still spin and wait for more work."""
WAKE_S = 0.015
"""How long a clip is repeated before the repetition that counts, because the processor sleeps during the pause: with
two threads, alnum-micro in int8 took 3.4 ms without a pause, 6.0 ms after 5 ms and 8.1 ms after 20 ms; its teacher took
30 ms in all three cases."""


class ClipPlayer:
    """A process that transcribes a clip when it is asked to."""

    def __init__(self, process: "subprocess.Popen[str]", name: str):
        self._process, self.name = process, name

    def wait_until_ready(self) -> None:
        """Wait for the end of the process's warm-up."""
        self._read_line()

    def __call__(self, clip: int) -> float:
        """Transcribe the clip of this number and return the seconds it took."""
        time.sleep(REST_S)
        assert self._process.stdin is not None
        print(clip, file=self._process.stdin, flush=True)
        return float(self._read_line())

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        raise RunError(
            f"benchmark: {self.name} ended with status {self._process.wait()} while it was measured alternately with "
            "another system; its last message is above"
        )


@contextmanager
def open_player(task: MeasuringTask, name: str, module: str = "eval.latency.paired_timing") -> Iterator[ClipPlayer]:
    """Start a system's process and wait for its warm-up; the process is killed at the end of the context.

    Args:
        task: The system and its clips.
        name: Name of the system, for error messages.
        module: The module that the process runs.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=threads_environment(task.threads),
    )  # fmt: skip
    try:
        assert process.stdin is not None
        print(json.dumps(asdict(task)), file=process.stdin, flush=True)
        player = ClipPlayer(process, name)
        player.wait_until_ready()
        yield player
    finally:
        process.kill()
        process.communicate()


def time_ratios(first: ClipPlayer, second: ClipPlayer, clips: int, turns: int) -> np.ndarray:
    """Return the time of `first` over that of `second` in each turn, [turns]."""
    first_N, second_N = time_in_turn(first, second, clips, turns)
    return first_N / second_N


def time_in_turn(first: ClipPlayer, second: ClipPlayer, clips: int, turns: int) -> np.ndarray:
    """Let both players transcribe the clips 0 to `clips` - 1 in turn; return their seconds, [2, turns]."""
    seconds = []
    for turn in range(turns):
        order = (first, second) if turn % 2 == 0 else (second, first)
        by_player = {player: player(turn % clips) for player in order}
        seconds.append((by_player[first], by_player[second]))
    return np.array(seconds).T


def serve_clips(task: MeasuringTask) -> None:
    """Load the system, warm up and print `ready`; then print the seconds for each clip number read from stdin."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    clips = [read_audio(audio) for audio in task.clips]
    folder, options = Path(task.folder), {"exact_tokens": task.tokens}
    runtime = open_runtime(task.runtime, folder, task.precision, task.threads)
    transcriber = Transcriber(runtime, folder, task.language, task.task)
    for index in range(task.warmup):
        transcriber.transcribe([clips[index % len(clips)]], **options)
    print("ready", flush=True)
    for line in sys.stdin:
        print(awake_seconds(partial(transcriber.transcribe, [clips[int(line)]], **options)), flush=True)


def awake_seconds(play: Callable[[], object]) -> float:
    """Return the seconds that `play` takes on a processor that is awake: repeat it for `WAKE_S`, time the last call."""
    begun = time.perf_counter()
    while True:
        started = time.perf_counter()
        play()
        seconds = time.perf_counter() - started
        if started - begun >= WAKE_S or seconds >= 20 * WAKE_S:
            return seconds


if __name__ == "__main__":
    serve_clips(MeasuringTask(**json.loads(sys.stdin.readline())))
