"""What a figure was measured on: hardware, versions, commit. Imports nothing heavy."""

import ctypes
import os
import platform
import signal
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = (
    "sottovoce", "torch", "transformers", "accelerate", "onnx", "onnxruntime", "openvino", "ctranslate2",
    "ai-edge-litert", "numpy", "jiwer",
)  # fmt: skip

ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Environment of a process that transcribes: numpy's BLAS, used for the log-mel alone, keeps to its thread.

Its other threads would spin after each product on the cores that the runtime then needs: the int8 encoder of alnum's
student took 15.9 ms on two threads of two cores with ONNX Runtime and takes 8.5, with OpenVINO 8.2 and 5.7.
"""


def threads_environment(threads: int) -> dict[str, str]:
    """This process's environment for one that measures with so many threads."""
    return os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)) | ONE_BLAS_THREAD


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that started it dies; elsewhere than on Linux nothing is done.

    A stage that is killed then leaves no process behind that measures on, beside its next try.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


@cache
def describe_machine() -> dict[str, Any]:
    """CPU model, usable cores, memory in GB, platform, Python and package versions."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


@cache
def current_commit() -> str | None:
    """The checkout's commit, `+` when it has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None


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
