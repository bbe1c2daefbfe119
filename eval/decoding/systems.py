"""What is judged: the teacher, the student and each exported artefact, behind one face."""

import json
from dataclasses import dataclass
from pathlib import Path

from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import open_runtime, weight_files
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.flow import student_folder
from recipes.schema.recipe import Recipe


@dataclass(frozen=True)
class System:
    """One row of every table."""

    name: str
    role: str
    """teacher, student or export."""
    runtime: str
    """One of `eval.runtimes.registry.RUNTIMES`."""
    precision: str
    folder: Path

    @property
    def files(self) -> list[Path]:
        """The weight files that would be shipped."""
        return weight_files(self.runtime, self.folder, self.precision)

    @property
    def size_mb(self) -> float:
        """Weight files on disk, in 10^6 bytes."""
        return sum(file.stat().st_size for file in self.files) / 1e6

    @property
    def parameters_m(self) -> float | None:
        """Millions of parameters, from the safetensors header; None for exports."""
        if self.runtime != "torch":
            return None
        return sum(_parameters(file) for file in self.files) / 1e6


def _parameters(file: Path) -> int:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__" and name != "proj_out.weight":
            count = 1
            for size in tensor["shape"]:
                count *= size
            total += count
    return total


def list_systems(recipe: Recipe) -> list[System]:
    """Teacher and student in PyTorch fp32, then every export."""
    exported = recipe.root / "export" / "model"
    return [
        System("teacher-torch-fp32", "teacher", "torch", "fp32", resolve_model_folder(recipe.teacher.model)),
        System("student-torch-fp32", "student", "torch", "fp32", student_folder(recipe)),
        *(System(name, "export", runtime, precision, exported) for name, runtime, precision in recipe.export.artefacts),
    ]


def open_transcriber(system: System, threads: int, language: str | None, task: str) -> Transcriber:
    """A system ready to transcribe."""
    runtime = open_runtime(system.runtime, system.folder, system.precision, threads)
    return Transcriber(runtime, system.folder, language, task)
