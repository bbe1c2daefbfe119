"""Run a stage as a process of its own, through accelerate's launcher where the stage may have several processes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from recipes.core.errors import MESSAGE_FILE_VARIABLE
from recipes.core.machine import usable_cores
from recipes.engine.flow import CODE_ROOT, Stage

ONE_CPU_PROCESS = {
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "use_cpu": True, "num_machines": 1,
    "num_processes": 1, "machine_rank": 0, "mixed_precision": "no",
}  # fmt: skip
"""The contents of `recipes/accelerate/cpu.yaml`."""


@dataclass(frozen=True)
class StageExit:
    """How the process of a stage ended."""

    status: int
    """Exit status: 0 on success, else 1, 2 or 3 as in `recipes.core.errors`."""
    message: str | None = None
    """The error of a stage that was started by a launcher, which may print much after the stage's own message."""


@dataclass(frozen=True)
class _Launcher:
    """How to start a stage that uses accelerate."""

    arguments: Sequence[str]
    """Arguments of Python before the script; empty if the script needs no launcher."""
    environment: dict[str, str]


def run_stage(stage: Stage, launch: Path | None, arguments: Sequence[str]) -> StageExit:
    """Run a stage and wait for it to end.

    Args:
        stage: The stage.
        launch: Configuration file of accelerate, or None for accelerate's default.
        arguments: Arguments of the stage's command: recipe file and overrides.
    """
    path = os.pathsep.join(filter(None, [str(CODE_ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    program, _, target, *options = stage.command.split()
    launcher = _Launcher([], {})
    command = [sys.executable, "-m", target, *options]
    if program == "accelerate":
        launcher = _choose_launcher(launch)
        command = [sys.executable, *launcher.arguments, str(stage.file), *options]
    with tempfile.TemporaryDirectory() as folder:
        message_file = Path(folder) / "message"
        environment = launcher.environment | environment | {MESSAGE_FILE_VARIABLE: str(message_file)}
        process = subprocess.Popen([*command, *arguments], env=environment)
        with _forward_sigterm(process, launched=bool(launcher.arguments)):
            status = process.wait()
        left = json.loads(message_file.read_text()) if message_file.is_file() else {}
    if status == 0:
        return StageExit(0)
    message = left.get("message", f"a process ended with exit status {status}") if launcher.arguments else None
    # accelerate's launcher replaces the exit status of the stage by its own
    return StageExit(left.get("status", status if status in (1, 2, 3) else 1), message)


@contextmanager
def _forward_sigterm(process: subprocess.Popen[bytes], *, launched: bool) -> Iterator[None]:
    """Forward SIGTERM to the stage, below its launcher if it has one. The stage then saves its state and ends."""

    def forward(*_: object) -> None:
        started = psutil.Process(process.pid)
        for stage_process in started.children() if launched else [started]:
            stage_process.terminate()

    previous = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _choose_launcher(launch: Path | None) -> _Launcher:
    """Choose the launcher for an accelerate configuration file."""
    # The module of `accelerate launch`. `accelerate` itself would spend two seconds importing its other commands.
    accelerate = ["-m", "accelerate.commands.launch", "--quiet"]
    if launch is None:
        return _Launcher(accelerate, {})
    settings = yaml.safe_load(launch.read_text())
    processes = settings.get("num_processes", 1)
    threads = {"OMP_NUM_THREADS": str(max(1, usable_cores() // processes))}
    if settings.get("distributed_type") == "MULTI_CPU":
        # accelerate 1.15 ignores num_processes here and starts one process: it leaves the others to MPI.
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return _Launcher(torchrun, threads | {"ACCELERATE_USE_CPU": "true"})
    if settings == ONE_CPU_PROCESS:
        # This variable is all that is needed. The launcher would import torch, which takes two seconds, and hold 230 MB
        # of memory while the stage runs.
        return _Launcher([], threads | {"ACCELERATE_USE_CPU": "true"})
    return _Launcher([*accelerate, "--config_file", str(launch)], threads)
