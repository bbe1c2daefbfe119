from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.budget import judge, load_budget
from recipes.errors import UserError
from tests.conftest import ROOT


def variant(name: str, role: str, size_mb: float, p95: float) -> dict[str, Any]:
    return {"name": name, "role": role, "size_mb": size_mb, "rtf": 0.01, "peak_rss_mb": 100.0,
            "clip_ms": {"p50": p95 / 2, "p95": p95}}  # fmt: skip


VARIANTS = [
    variant("teacher", "teacher", 20, 900),
    variant("a", "export", 10, 100),
    variant("b", "export", 4, 120),
]
WER = {"teacher": 10.0, "a": 10.5, "b": 10.9}


def budget(tmp_path: Path, **limits: float) -> Path:
    file = tmp_path / "device.yaml"
    file.write_text(yaml.safe_dump({"name": "d", "description": "x", "source": "y", "limits": limits}))
    return file


def test_the_smallest_artefact_that_passes_is_named(tmp_path: Path) -> None:
    loose = load_budget(budget(tmp_path, clip_p95_ms=300, wer_increase=1.0))
    assert judge(loose, VARIANTS, WER, True)["cheapest"] == "b"
    strict = judge(load_budget(budget(tmp_path, clip_p95_ms=110)), VARIANTS, WER, True)
    assert (strict["kept"], strict["cheapest"]) == (True, "a")
    assert [item["kept"] for item in strict["verdicts"]] == [True, False]


def test_a_budget_nothing_keeps_is_missed(tmp_path: Path) -> None:
    result = judge(load_budget(budget(tmp_path, wer_increase=0.4)), VARIANTS, WER, True)
    assert (result["kept"], result["cheapest"]) == (False, None)


def test_a_limit_that_was_not_measured_is_not_kept(tmp_path: Path) -> None:
    assert not judge(load_budget(budget(tmp_path, wer_increase=9)), VARIANTS, {}, True)["kept"]


def test_a_misspelt_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"limits\.clip_p95"):
        load_budget(budget(tmp_path, clip_p95=3))


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "budgets").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_budget_here_is_valid(file: Path) -> None:
    assert load_budget(file).name == file.stem
