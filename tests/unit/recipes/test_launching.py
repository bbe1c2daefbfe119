"""Launching stages: the single-process configuration is recognised, and exit statuses and messages are passed on."""

from pathlib import Path

import pytest
import yaml

from recipes.engine.flow import STAGES, Stage
from recipes.engine.launching import ONE_CPU_PROCESS, StageExit, run_stage
from tests.conftest import ROOT

CPU = ROOT / "recipes" / "accelerate" / "cpu.yaml"


def test_the_cpu_configuration_needs_no_launcher() -> None:
    assert yaml.safe_load(CPU.read_text()) == ONE_CPU_PROCESS


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_file_of_every_stage_exists(stage: Stage) -> None:
    assert stage.file.is_file()


def test_the_status_of_a_stage_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing.py").write_text(
        "from recipes.core.errors import BudgetMissed, run_main\n"
        "def main():\n    raise BudgetMissed('too slow')\n"
        "run_main(main)\n"
    )
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_stage(Stage("report", "python -m failing", ()), CPU, []) == StageExit(3)
    assert run_stage(Stage("report", "python -m killed", ()), CPU, []) == StageExit(1)
