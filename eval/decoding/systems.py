"""The systems that evaluation and benchmark compare: teacher, student and every exported artefact."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from eval.decoding.transcriber import Transcriber
from eval.runtimes.registry import open_runtime, weight_files


@dataclass(frozen=True)
class System:
    """A model with the runtime and precision that it runs in: one row of every results table."""

    name: str
    role: str
    """`teacher`, `student` or `export`."""
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
        """Size of the weight files on disk in MB (10^6 bytes)."""
        return sum(file.stat().st_size for file in self.files) / 1e6

    @property
    def parameters_m(self) -> float | None:
        """Number of parameters in millions, from the safetensors headers; None for exports."""
        if self.runtime != "torch":
            return None
        return sum(_count_parameters(file) for file in self.files) / 1e6


def _count_parameters(file: Path) -> int:
    """Count the parameters of a safetensors file; the output projection is tied to the embedding and not counted."""
    with safe_open(file, "np") as weights:
        names = [name for name in weights.keys() if name != "proj_out.weight"]  # noqa: SIM118  # no mapping
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)


def list_systems(teacher: Path, student: Path, export: Path, artefacts: Sequence[tuple[str, str, str]]) -> list[System]:
    """Return the teacher and the student in PyTorch fp32, then every export, in the order of the results tables.

    Args:
        teacher: The teacher's model folder.
        student: The model folder of the finished student.
        export: The model folder that the export stage has written.
        artefacts: Name, runtime and precision of each export, as `ExportSection.artefacts` lists them.
    """
    return [
        System("teacher-torch-fp32", "teacher", "torch", "fp32", teacher),
        System("student-torch-fp32", "student", "torch", "fp32", student),
        *(System(name, "export", runtime, precision, export) for name, runtime, precision in artefacts),
    ]


def open_transcriber(system: System, threads: int, language: str | None, task: str) -> Transcriber:
    """Load a system for transcription in a language (a code, or None for an English-only model) with `threads` threads.

    `task` is `transcribe` or `translate`. Raises UserError as `open_runtime` does.
    """
    runtime = open_runtime(system.runtime, system.folder, system.precision, threads)
    return Transcriber(runtime, system.folder, language, task)
