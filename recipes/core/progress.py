"""Progress of long loops: a bar in a terminal, otherwise one log line per tenth of the work."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Self, TypeVar

from tqdm import tqdm

from recipes.core.logs import log

T = TypeVar("T")

MIN_SECONDS = 1.0
"""Least time between two lines of a log, so that a loop of one second does not write ten."""


class Progress:
    """Counts finished steps of a known or unknown total and shows them.

    In a terminal this is a tqdm bar. Where stderr is a file or a pipe, one line is logged at each tenth of the total
    (every 1,000 steps if the total is unknown), with the time passed and an estimate of the time left.

    Args:
        name: What is being done, for example `labels`.
        total: Number of steps, or None if it is unknown.
        unit: What one step is, for example `batch`.
        initial: Number of steps that an earlier run has finished.
        disable: Show nothing, for processes other than the main one.
    """

    def __init__(self, name: str, total: int | None, *, unit: str = "step", initial: int = 0, disable: bool = False):
        self.name, self.total, self.unit, self.done, self._initial = name, total, unit, initial, initial
        self._started, self._disable = time.monotonic(), disable
        self._tenth, self._last_line = self._tenths(), self._started
        terminal = sys.stderr.isatty()
        self._bar = tqdm(desc=name, total=total, unit=unit, initial=initial, disable=disable) if terminal else None

    def update(self, steps: int = 1, figures: str = "") -> None:
        """Count finished steps; `figures` is shown next to the count, for example `loss 1.23`."""
        self.done += steps
        if self._bar is not None:
            if figures:
                self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(steps)
        elif not self._disable and (tenth := self._tenths()) > self._tenth:
            self._tenth = tenth
            now = time.monotonic()
            if self.done == self.total or now - self._last_line >= MIN_SECONDS:
                self._last_line = now
                log.info(self._line(figures))

    def close(self) -> None:
        """Close the progress bar, if there is one."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tenths(self) -> int:
        return 10 * self.done // self.total if self.total else self.done // 1000

    def _line(self, figures: str) -> str:
        passed = time.monotonic() - self._started
        of_total = f"of {self.total} " if self.total is not None else ""
        units = self.unit if (self.total or self.done) == 1 else _plural(self.unit)
        line = f"{self.name}: {self.done} {of_total}{units}, {tqdm.format_interval(passed)} passed"
        if self.total is not None and self.total > self.done > self._initial:
            left = passed * (self.total - self.done) / (self.done - self._initial)
            line += f", about {tqdm.format_interval(left)} left"
        return f"{line}; {figures}" if figures else line


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith(("ch", "s", "x")) else f"{unit}s"


def track(
    items: Iterable[T], name: str, total: int | None = None, *, unit: str = "step", initial: int = 0,
    disable: bool = False,
) -> Iterator[T]:  # fmt: skip
    """Yield the items and show how many are done. Arguments as for `Progress`; `total` defaults to `len(items)`."""
    if total is None and isinstance(items, Sized):
        total = initial + len(items)
    with Progress(name, total, unit=unit, initial=initial, disable=disable) as progress:
        for item in items:
            yield item
            progress.update()
