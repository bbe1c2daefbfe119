"""What takes how long, all in turn, so that the machine's other work falls on all of them alike."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
from tqdm import tqdm

Key = TypeVar("Key", bound=Hashable)
WARM_UP = 3
"""Rounds that do not count."""


def medians_ms(calls: Mapping[Key, Callable[[int], object]], runs: int, what: str) -> dict[Key, tuple[float, float]]:
    """Of each call, given the number of its round: median time that passed, and processor time of all our threads.

    Other programs' turns are not in the second.
    """
    spent = {key: list[np.ndarray]() for key in calls}
    for run in tqdm(range(-WARM_UP, runs), what):
        for key, call in calls.items():
            started = _clocks_ms()
            call(run)
            if run >= 0:
                spent[key].append(_clocks_ms() - started)
    medians = {key: np.median(times, axis=0).tolist() for key, times in spent.items()}
    return {key: (passed, cpu) for key, (passed, cpu) in medians.items()}


def _clocks_ms() -> np.ndarray:
    return 1e3 * np.array([time.perf_counter(), time.process_time()])
