"""A small real run: every stage on 24 utterances, a few training steps."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, TEACHER, Once

RECIPE = """
name: small
runs: {runs}
launch: {root}/recipes/accelerate/cpu.yaml
teacher: {{model: {teacher}}}
corpus: {{sources: [{{audiofolder: {speech}, name: spoken}}], max_seconds: 7}}
labels: {{batch_size: 4}}
student: {{decoder_layers: 2}}
train: {{steps: 8, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, eval_steps: 4, save_steps: 2, workers: 0}}
export: {{onnx: [fp32, int8], parity: {{clips: 2, min_equal_text: {{int8: 0}}, max_wer_increase: {{int8: 100}}}}}}
eval:
  {{normalizer: basic, bootstrap: 100, samples: 2, noise: {{snr_db: [5], utterances: 2, alone: 1}},
    long_form: {{joined_seconds: 8, recordings: 1}}, draft: 3}}
benchmark: {{threads: 1, clips: 2, runs: 4, warmup: 1, turns: 2}}
budget: {{device: {folder}/device.yaml, required: false}}
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def sottovoce(*arguments: str) -> list[str]:
    """The command line, by this Python."""
    return [sys.executable, "-m", "recipes.engine.cli", *arguments]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a command from the project's folder; its output is captured."""

    def start(*command: str, **options: object) -> "subprocess.CompletedProcess[str]":
        environment = {"OMP_NUM_THREADS": "2"} | os.environ | {"HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **options  # type: ignore[call-overload]
        )  # fmt: skip

    return start


def write_recipe(folder: Path, speech: Path) -> Path:
    """The small recipe and its device; the path of the recipe."""
    # A device that asks for no threads of its own: nothing is measured twice.
    limits = "{clip_p95_ms: 10000, peak_rss_mb: 1000, size_mb: 500, wer_increase: 50}"
    (folder / "device.yaml").write_text(f"{{name: device, description: d, source: s, limits: {limits}}}")
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(folder=folder, runs=folder / "runs", root=ROOT, teacher=TEACHER, speech=speech))
    return file


@pytest.fixture(scope="session")
def finished(once: Once, speech: Path, run: Run) -> Path:
    """The recipe of a run that went through without interruption."""

    def go_through(folder: Path) -> None:
        done = run(*sottovoce("run", str(write_recipe(folder, speech))))
        assert done.returncode == 0, done.stdout + done.stderr

    return once("finished", go_through) / "recipe.yaml"


def write_labelled(folder: Path, speech: Path, finished: Path) -> Path:
    """The small recipe with the labels and the cut student of the finished run; the path of the recipe."""
    for stage in ("corpus", "labels", "quality", "student"):
        shutil.copytree(finished.parent / "runs" / "small" / stage, folder / "runs" / "small" / stage)
    return write_recipe(folder, speech)
