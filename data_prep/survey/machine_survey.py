"""What the machine has: cores, memory, free disk and GPUs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from recipes.core.machine import describe_machine


@dataclass(frozen=True)
class MachineSurvey:
    """The parts of a machine that decide a recipe's defaults."""

    cpu: str
    cores: int
    memory_gb: float
    free_disk_gb: float
    gpus: tuple[str, ...]
    """Name of each CUDA device."""
    gpu_memory_gb: float
    """Memory of the smallest of them; 0 without one."""
    bf16: bool
    """Whether every GPU computes in bfloat16."""

    def describe(self) -> str:
        """Return one sentence for the user and for the recipe's header."""
        gpus = f"{len(self.gpus)} x {self.gpus[0]} ({self.gpu_memory_gb:.0f} GB)" if self.gpus else "no GPU"
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gb:.0f} GB of memory, {self.free_disk_gb:.0f} GB of free "
            f"disk, {gpus}"
        )


def survey_machine() -> MachineSurvey:
    """Look at this machine; free disk is that of the working directory."""
    machine = describe_machine()
    count = torch.cuda.device_count()
    devices = [torch.cuda.get_device_properties(index) for index in range(count)]
    return MachineSurvey(
        cpu=machine["cpu"],
        cores=machine["cores"],
        memory_gb=machine["memory_gb"],
        free_disk_gb=shutil.disk_usage(Path.cwd()).free / 1e9,
        gpus=tuple(device.name for device in devices),
        gpu_memory_gb=min((device.total_memory / 1e9 for device in devices), default=0.0),
        bf16=bool(devices) and all(device.major >= 8 for device in devices),
    )
