"""compressed-tensors checkpoints (`distill.exporters.compressed_tensors_export`), loaded by plain transformers.

A CPU has no kernels for this format: the weights are expanded to float32 on loading, and w8a8 rounds activations
without any gain in speed. The text is the one that vLLM produces; the time it takes is not vLLM's.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.runtimes.torch_runtime import TorchRuntime


PRECISIONS = ("w8a8", "w4a16")


def files(folder: Path, precision: str) -> list[Path]:
    """Return the existing safetensors files of the checkpoint."""
    return sorted((folder / f"compressed-{precision}").glob("model*.safetensors"))


def load(folder: Path, precision: str, threads: int) -> "TorchRuntime":
    """Load a checkpoint. Raises UserError if a file is missing or broken."""
    # transformers does not name the package if it is missing; this import raises ModuleNotFoundError, which does.
    import compressed_tensors  # noqa: F401

    from eval.runtimes.torch_runtime import load as load_checkpoint

    return load_checkpoint(folder / f"compressed-{precision}", precision, threads)
