"""Finished runs side by side."""

import json
import shutil
from pathlib import Path

import pytest

from tests.stages.conftest import Run, sottovoce


@pytest.fixture
def worse(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and a copy of it whose int8 export hears nothing, and is larger and slower."""
    run, copy = finished.parent / "runs" / "small", tmp_path / "copy"
    shutil.copytree(run, copy)
    said = copy / "eval" / "hypotheses-onnx-int8.json"
    said.write_text(json.dumps([""] * len(json.loads(said.read_text()))))
    report = copy / "report" / "report.json"
    figures = json.loads(report.read_text())
    (row,) = [row for row in figures["latency"]["variants"] if row["name"] == "onnx-int8"]
    row["size_mb"] *= 1.5
    row["speedup"] /= 2
    report.write_text(json.dumps(figures))
    return run, copy


def test_regressions_are_flagged_and_nothing_else(worse: tuple[Path, Path], run: Run) -> None:
    done = run(*sottovoce("compare", *map(str, worse), "--format", "json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 8
    found = {row["system"]: row for row in rows[4:]}
    assert found.pop("onnx-int8")["regressions"][1:] == ["speed -50 %", "size +50 %"]
    assert [row["regressions"] for row in found.values()] == [[], [], []]
    assert all(row["wer_difference"] == [0, 0, 0] for row in found.values())


def test_the_table_names_the_loss_and_strict_ends_with_one(worse: tuple[Path, Path], run: Run) -> None:
    done = run(*sottovoce("compare", *map(str, worse), "--strict"))
    assert done.returncode == 1
    assert "1 systems regressed: onnx-int8" in done.stderr
    assert "WER +" in done.stdout.splitlines()[-1]
    same = run(*sottovoce("compare", str(worse[0]), str(worse[0]), "--strict"))
    assert same.returncode == 0, same.stderr


def test_a_folder_without_a_report_is_one_line(worse: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    done = run(*sottovoce("compare", str(worse[0]), str(tmp_path)))
    assert done.returncode == 2
    assert "expected a finished report" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
