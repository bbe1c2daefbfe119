"""Time several calls in turn, so that other work on the machine slows all of them alike."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np

from recipes.core.progress import track

Key = TypeVar("Key", bound=Hashable)
WARM_UP_ROUNDS = 3
"""Rounds whose times are not counted."""


def median_times_ms(
    calls: Mapping[Key, Callable[[int], object]], runs: int, name: str
) -> dict[Key, tuple[float, float]]:
    """Return the median elapsed time and the median processor time of each call, in ms.

    Every round makes each call once, with the number of the round as its argument. The processor time is that of all
    threads of this process, so that it does not include the time in which other programs run. `name` is shown with the
    progress.
    """
    times: dict[Key, list[np.ndarray]] = {key: [] for key in calls}
    for run in track(range(-WARM_UP_ROUNDS, runs), name, unit="round"):
        for key, call in calls.items():
            started = _clocks_ms()
            call(run)
            if run >= 0:
                times[key].append(_clocks_ms() - started)
    medians = {key: np.median(rows, axis=0).tolist() for key, rows in times.items()}
    return {key: (elapsed, cpu) for key, (elapsed, cpu) in medians.items()}


def _clocks_ms() -> np.ndarray:
    return 1e3 * np.array([time.perf_counter(), time.process_time()])
