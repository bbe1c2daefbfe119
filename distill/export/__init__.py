"""The student as files for devices: one exporter a runtime, each in modules of its own and imported when asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.sections import SMOOTH_QUANT, Precision

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


@dataclass(frozen=True)
class Student:
    """What is exported."""

    model: "WhisperForConditionalGeneration"
    """On the CPU in float32, in evaluation mode."""
    source: Path
    """Its checkpoint's folder."""
    calibration: Sequence[Sequence[str]]
    """Training audio (`eval.audio` references an utterance), for quantisers that look at activations; never test."""
    smooth_quant: Sequence[float | None] = SMOOTH_QUANT
    """Shares of SmoothQuant that such a quantiser tries; None leaves it out."""
    language: str | None = "en"
    task: str = "transcribe"
    """Language code and task of the text that a quantiser lets it write on that audio."""


Exporter = Callable[[Student, Path, Sequence[Precision]], None]
"""Writes these precisions into a model folder that holds the student's JSONs already (`eval.runtimes` loads them)."""


def _onnx(student: Student, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.export.layout import complete_onnx
    from distill.export.onnx_export import export_onnx

    export_onnx(student.model, folder, precisions)
    complete_onnx(folder)


def _openvino(student: Student, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.export.openvino_export import export_openvino

    export_openvino(student, folder, precisions)


def _tflite(student: Student, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.export.tflite_export import export_tflite

    export_tflite(student, folder, precisions)


def _mobile(student: Student, folder: Path, _precisions: Sequence[Precision]) -> None:
    from distill.export.mobile_graphs import export_mobile

    export_mobile(student, folder)


def _ctranslate2(student: Student, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.export.ctranslate2_export import export_ctranslate2

    export_ctranslate2(student, folder, precisions)


def _compressed_tensors(student: Student, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.export.compressed_tensors_export import export_compressed_tensors

    export_compressed_tensors(student, folder, precisions)


EXPORTERS: dict[str, Exporter] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "tflite": _tflite,
    "mobile": _mobile,
    "ctranslate2": _ctranslate2,
    "compressed_tensors": _compressed_tensors,
}
