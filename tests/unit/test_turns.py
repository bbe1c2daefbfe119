"""Two processes in turn: the same artefact is as fast as itself, and a process that ends is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.turns import median, player, quotients
from recipes.errors import RunError
from tests.conftest import TEACHER


def task(speech: Path) -> dict[str, Any]:
    clips = [[str(file)] for file in sorted((speech / "train").glob("*.flac"))[:2]]
    return {"clips": clips, "warmup": 1, "tokens": None, "language": "en", "task": "transcribe", "threads": 1,
            "folder": str(TEACHER), "runtime": "torch", "precision": "fp32"}  # fmt: skip


def test_each_clip_goes_to_both(speech: Path) -> None:
    with player(task(speech), "one") as one, player(task(speech) | {"tokens": 100}, "many") as many:
        found = quotients(many, one, 2, 4)
    assert found.shape == (4,)
    assert (found > 2).all(), "a hundred tokens take longer than the text"


def test_the_median_lies_in_its_interval() -> None:
    values = np.random.default_rng(0).lognormal(0.7, 0.1, 50)
    found = median(values)
    assert found["low"] < found["value"] == np.median(values) < found["high"]
    assert found["low"] < np.exp(0.7) < found["high"]


def test_a_process_that_ends_is_named(speech: Path) -> None:
    with (
        pytest.raises(RunError, match="benchmark: broken ended with status"),
        player(task(speech) | {"folder": "nowhere"}, "broken"),
    ):
        pass
