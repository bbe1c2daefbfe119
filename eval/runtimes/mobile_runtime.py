"""The mobile graphs of `distill.exporters.mobile_graphs`, run by LiteRT on this machine's CPU."""

from pathlib import Path

from eval.runtimes.tflite_runtime import TfliteRuntime

PRECISIONS = ("fp32",)


def files(folder: Path, _precision: str) -> list[Path]:
    """Encoder and decoder for LiteRT; the same graphs lie beside them as ONNX."""
    return [path for path in _paths(folder) if path.is_file()]


def load(folder: Path, _precision: str, threads: int) -> TfliteRuntime:
    """See `TfliteRuntime`."""
    return TfliteRuntime(*_paths(folder), threads)


def _paths(folder: Path) -> tuple[Path, Path]:
    return folder / "mobile" / "encoder.tflite", folder / "mobile" / "decoder.tflite"
