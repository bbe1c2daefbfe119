"""Hardware, package versions and commit behind a measurement. Imports no heavy packages."""

import ctypes
import os
import platform
import signal
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import psutil

_PACKAGES = (
    "sottovoce", "torch", "transformers", "accelerate", "onnx", "onnxruntime", "openvino", "ctranslate2",
    "ai-edge-litert", "numpy", "jiwer",
)  # fmt: skip

ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Environment of a process that transcribes: it limits numpy's BLAS, which only the log-mel uses, to one thread.

With more threads, BLAS keeps spinning after each product on the cores that the runtime needs next. On two threads of
two cores, one BLAS thread takes the int8 encoder of alnum's student from 15.9 ms to 8.5 ms with ONNX Runtime and from
8.2 ms to 5.7 ms with OpenVINO.
"""


def threads_environment(threads: int) -> dict[str, str]:
    """Return the environment of a measuring process that uses `threads` threads, based on this process's own."""
    return os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)) | ONE_BLAS_THREAD


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent dies. Does nothing on systems other than Linux.

    Without this, a stage that is killed would leave a measuring process behind, which disturbs the next attempt.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


class MachineDescription(TypedDict):
    """Hardware and software of a machine, as written to JSON files."""

    cpu: str
    """Model name of the processor."""
    cores: int
    """Number of cores that this process may use."""
    memory_gb: float
    """Physical memory in GB (10^9 bytes)."""
    platform: str
    python: str
    versions: dict[str, str]
    """Version of each installed package that can change a result."""


def usable_cores() -> int:
    """Return the number of cores this process may run on; all cores of the machine except on Linux."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def describe_machine() -> MachineDescription:
    """Describe the machine and the environment that this process runs in."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


@cache
def current_commit() -> str | None:
    """Return the commit of the checkout, with `+` appended if it has uncommitted changes; None outside a checkout."""
    try:
        completed = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip() or None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
