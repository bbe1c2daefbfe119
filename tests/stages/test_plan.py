"""A small real plan: shapes are measured once, the largest is chosen and measured, and its recipe is valid."""

import json
from pathlib import Path

import pytest

from recipes.schema.recipe import load_recipe
from tests.conftest import TEACHER, Once
from tests.stages.conftest import Run, sottovoce

LIMITS = "limits: {{clip_p95_ms: {ms}, peak_rss_mb: 1000, size_mb: 500, wer_increase: 1}}"


def command(folder: Path, ms: float, *more: str) -> list[str]:
    budget = folder / f"{ms:g}.yaml"
    budget.write_text(f"{{name: device, description: d, source: s, threads: 1, {LIMITS.format(ms=ms)}}}")
    small = ("--seconds", "2", "--tokens", "4", "--windows", "3", "--encoder-layers", "1", "--decoder-layers", "1", "2")
    return sottovoce(
        "plan", "--budget", str(budget), "--teacher", str(TEACHER), "--cache", str(folder / "cache"), "--runs", "2",
        "--artefacts", "onnx-int8", *small, *more,
    )  # fmt: skip


def measurements(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (folder / "cache").rglob("*-*.json")}


@pytest.fixture(scope="module")
def folder(once: Once, run: Run) -> Path:
    """A folder with a finished plan, for a budget that every student keeps."""

    def plan(folder: Path) -> None:
        done = run(*command(folder, 10_000, "--write", str(folder / "mine" / "recipe.yaml")))
        assert done.returncode == 0, done.stdout + done.stderr

    return once("plan", plan)


def test_the_chosen_student_is_measured_and_its_recipe_accepted(folder: Path, run: Run) -> None:
    recipe = folder / "mine" / "recipe.yaml"
    assert sorted(measurements(folder)) == ["1-1-3-all-onnx-int8.json", "1-2-3-all-onnx-int8.json"]
    chosen = load_recipe(recipe)
    assert (chosen.student.encoder_layers, chosen.student.decoder_layers) == (1, 2)
    assert chosen.compress is not None
    assert chosen.compress.window is not None
    assert chosen.compress.window.seconds == 3
    checked = run(*sottovoce("check", str(recipe)))
    assert checked.returncode == 0, checked.stderr
    (measured,) = (folder / "cache").rglob("1-2-3-all-onnx-int8.json")
    row = json.loads(measured.read_text())
    assert row["vocabulary"] == 586
    parts = row["figures"]
    first = parts["mel_ms"] + parts["encoder_ms"] + parts["prompt_ms"]
    assert first + 3 * parts["token_ms"] == pytest.approx(parts["clip_p50_ms"])
    assert parts["size_mb"] > 1
    assert row["quotient"] > 0


def test_another_budget_measures_nothing_again(folder: Path, run: Run) -> None:
    before = measurements(folder)
    assert before
    missed = run(*command(folder, 0.001, "--write", str(folder / "none" / "recipe.yaml")))
    assert missed.returncode == 3, missed.stdout + missed.stderr
    assert missed.stderr.splitlines()[-1].startswith("error: budget device: no student of")
    assert measurements(folder) == before
    assert not (folder / "none").exists()
