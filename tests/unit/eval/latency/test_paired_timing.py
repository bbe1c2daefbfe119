"""Two processes that play clips alternately: their order, the ratio of their times, and a process that ends."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from eval.latency.latency_rows import MeasuringTask
from eval.latency.paired_timing import open_player, time_ratios
from eval.scoring.resampling import median_interval
from recipes.core.errors import RunError
from tests.conftest import TEACHER


def task(speech: Path, folder: str = str(TEACHER)) -> MeasuringTask:
    clips = [[str(file)] for file in sorted((speech / "train").glob("*.flac"))[:2]]
    return MeasuringTask(
        folder=folder, runtime="torch", precision="fp32", threads=1, clips=clips, runs=1, warmup=1, tokens=None,
        language="en", task="transcribe",
    )  # fmt: skip


@dataclass(frozen=True)
class FixedTask(MeasuringTask):
    """A task for `tests.unit.fixed_seconds`."""

    name: str = ""
    seconds: float = 0.0
    played: str = ""


def test_each_clip_goes_to_both_and_first_alternates(tmp_path: Path) -> None:
    plain, played = vars(task(tmp_path)), str(tmp_path / "played")
    tasks = [
        FixedTask(**plain, name=name, seconds=seconds, played=played) for name, seconds in (("a", 0.75), ("b", 0.25))
    ]
    first, second = (open_player(fixed, fixed.name, "tests.unit.fixed_seconds") for fixed in tasks)
    with first as one, second as other:
        assert time_ratios(one, other, clips=3, turns=4).tolist() == [3, 3, 3, 3]
    assert (tmp_path / "played").read_text().split() == ["a0", "b0", "b1", "a1", "a2", "b2", "b0", "a0"]


def test_a_player_transcribes_and_says_how_long_it_took(speech: Path) -> None:
    with open_player(task(speech), "alnum") as alnum:
        assert all(0 < alnum(clip) < 60 for clip in (0, 1, 0))


def test_the_median_lies_in_its_interval() -> None:
    values = np.random.default_rng(0).lognormal(0.7, 0.1, 50)
    found = median_interval(values)
    assert found.low < found.value == np.median(values) < found.high
    assert found.low < np.exp(0.7) < found.high


def test_a_process_that_ends_is_named(speech: Path) -> None:
    with (
        pytest.raises(RunError, match="benchmark: broken ended with status"),
        open_player(task(speech, "nowhere"), "broken"),
    ):
        pass
