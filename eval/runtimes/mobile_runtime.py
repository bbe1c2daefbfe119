"""The mobile graphs (`distill.exporters.mobile_graphs`), run on this machine's CPU with LiteRT."""

from pathlib import Path

from eval.runtimes.tflite_runtime import TfliteRuntime

PRECISIONS = ("fp32",)


def files(folder: Path, _precision: str) -> list[Path]:
    """Return the existing LiteRT files of encoder and decoder. The folder also holds the same graphs as ONNX."""
    return [path for path in _paths(folder) if path.is_file()]


def load(folder: Path, _precision: str, threads: int) -> TfliteRuntime:
    """Load `folder/mobile/{encoder,decoder}.tflite`. Raises UserError if a file is missing or broken."""
    return TfliteRuntime(*_paths(folder), threads)


def _paths(folder: Path) -> tuple[Path, Path]:
    return folder / "mobile" / "encoder.tflite", folder / "mobile" / "decoder.tflite"
