"""Two processes in turn: who plays when, what is made of their seconds, and a process that ends is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.latency.paired_timing import median_interval, open_player, time_ratios
from recipes.core.errors import RunError
from tests.conftest import TEACHER


def task(speech: Path) -> dict[str, Any]:
    clips = [[str(file)] for file in sorted((speech / "train").glob("*.flac"))[:2]]
    return {"clips": clips, "warmup": 1, "tokens": None, "language": "en", "task": "transcribe", "threads": 1,
            "folder": str(TEACHER), "runtime": "torch", "precision": "fp32"}  # fmt: skip


def test_each_clip_goes_to_both_and_first_alternates(tmp_path: Path) -> None:
    tasks = [
        {"name": name, "seconds": seconds, "played": str(tmp_path / "played"), "threads": 1}
        for name, seconds in (("a", 0.75), ("b", 0.25))
    ]
    first, second = (open_player(each, each["name"], "tests.unit.fixed_seconds") for each in tasks)
    with first as one, second as other:
        assert time_ratios(one, other, clips=3, turns=4).tolist() == [3, 3, 3, 3]
    assert (tmp_path / "played").read_text().split() == ["a0", "b0", "b1", "a1", "a2", "b2", "b0", "a0"]


def test_a_player_transcribes_and_says_how_long_it_took(speech: Path) -> None:
    with open_player(task(speech), "alnum") as alnum:
        assert all(0 < alnum(clip) < 60 for clip in (0, 1, 0))


def test_the_median_lies_in_its_interval() -> None:
    values = np.random.default_rng(0).lognormal(0.7, 0.1, 50)
    found = median_interval(values)
    assert found["low"] < found["value"] == np.median(values) < found["high"]
    assert found["low"] < np.exp(0.7) < found["high"]


def test_a_process_that_ends_is_named(speech: Path) -> None:
    with (
        pytest.raises(RunError, match="benchmark: broken ended with status"),
        open_player(task(speech) | {"folder": "nowhere"}, "broken"),
    ):
        pass
