"""What a user of a finished student runs needs nothing that only Linux has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TEACHER

WITHOUT_LINUX = """
import os, sys, signal
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "sched_setaffinity", "fork"):
    if hasattr(os, name):
        delattr(os, name)
sys.platform = "portable"
"""
"""Runs at the start of every Python process: what Windows lacks is gone."""


@pytest.fixture
def portable(tmp_path: Path) -> dict[str, str]:
    """The environment of processes on a machine that is not Linux."""
    folder = tmp_path / "site"
    folder.mkdir()
    # Third-party packages look at the platform while they are imported; the project must not, so it is imported first.
    (folder / "without_linux.py").write_text(WITHOUT_LINUX)
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def run(environment: dict[str, str], module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import torch, numpy, onnxruntime, psutil, tqdm\n"
        "from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration\n"
        f"import without_linux, sys, runpy\nsys.argv[0] = {module!r}\nrunpy.run_module({module!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def test_check_and_new_run_anywhere(portable: dict[str, str], speech: Path, tmp_path: Path) -> None:
    checked = run(portable, "recipes.engine.cli", "check", "recipes/demo/recipe.yaml")
    assert checked.returncode == 0, checked.stderr
    file = tmp_path / "recipe.yaml"
    made = run(
        portable, "data_prep.new", "mine", "--teacher", str(TEACHER), "--audio", str(speech), "--language", "en",
        "--write", str(file),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert file.is_file()


def test_transcribe_runs_anywhere(portable: dict[str, str], speech: Path) -> None:
    clip = min((speech / "test").glob("*.flac"))
    done = run(portable, "eval.transcribe", str(TEACHER), str(clip), "--language", "en")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_serve_writes_a_site_anywhere(portable: dict[str, str], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TEACHER, model)
    refused = run(portable, "eval.serve", str(model), "--static", str(tmp_path / "site-files"))
    assert refused.returncode == 2, refused.stderr  # no ONNX files here: a message, not a traceback
    assert "onnx" in refused.stderr
    assert "Traceback" not in refused.stderr
