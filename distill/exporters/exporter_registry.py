"""All exporters by runtime.

An exporter's modules are imported only when it is used, so that the packages of the others need not be installed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from distill.exporters.export_source import ExportSource
from recipes.core.errors import UserError
from recipes.schema.export_section import ExportSection, Precision

Exporter = Callable[[ExportSource, Path, Sequence[Precision]], None]
"""Writes these precisions into a model folder that has the student's JSON files already (`folder_layout.write_layout`).
`eval.runtimes.registry` loads them."""


def _onnx(student: ExportSource, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.exporters.folder_layout import complete_onnx
    from distill.exporters.onnx_export import export_onnx

    export_onnx(student.model, folder, precisions)
    complete_onnx(folder)


def _openvino(student: ExportSource, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.exporters.openvino_export import export_openvino

    export_openvino(student, folder, precisions)


def _tflite(student: ExportSource, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.exporters.tflite_export import export_tflite

    export_tflite(student, folder, precisions)


def _mobile(student: ExportSource, folder: Path, _precisions: Sequence[Precision]) -> None:
    from distill.exporters.mobile_graphs import export_mobile

    export_mobile(student, folder)


def _ctranslate2(student: ExportSource, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.exporters.ctranslate2_export import export_ctranslate2

    export_ctranslate2(student, folder, precisions)


def _compressed_tensors(student: ExportSource, folder: Path, precisions: Sequence[Precision]) -> None:
    from distill.exporters.compressed_tensors_export import export_compressed_tensors

    export_compressed_tensors(student, folder, precisions)


EXPORTERS: dict[str, Exporter] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "tflite": _tflite,
    "mobile": _mobile,
    "ctranslate2": _ctranslate2,
    "compressed_tensors": _compressed_tensors,
}

EXTRAS = {"mobile": "tflite", "compressed_tensors": "int4"}
"""The extra of pyproject.toml that a runtime needs, for those whose extra has another name than the runtime."""


def write_artefacts(student: ExportSource, folder: Path, section: ExportSection) -> None:
    """Write every precision of every runtime that the section lists.

    Raises UserError if an exporter's package is not installed.
    """
    for runtime, export in EXPORTERS.items():
        if not (precisions := getattr(section, runtime)):
            continue
        try:
            export(student, folder, precisions)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(runtime, runtime)
            raise UserError(
                f"export.{runtime}: needs the package {error.name}, found none; pip install 'sottovoce[{extra}]'"
            ) from error
