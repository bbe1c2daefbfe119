"""A checkpoint of `distill.exporters.compressed_tensors_export` in PyTorch, by plain transformers.

A CPU has no kernel for it: weights are expanded to float32 at load, and w8a8 rounds activations without any gain. What
it says is what vLLM computes, how long it takes is not.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.runtimes.torch_runtime import TorchRuntime


PRECISIONS = ("w8a8", "w4a16")


def files(folder: Path, precision: str) -> list[Path]:
    """The weights."""
    return sorted((folder / f"compressed-{precision}").glob("model*.safetensors"))


def load(folder: Path, precision: str, threads: int) -> "TorchRuntime":
    """A checkpoint in memory. Raises UserError for files that are missing or broken."""
    import compressed_tensors  # noqa: F401  # where it is missing, transformers does not say so in one line

    from eval.runtimes.torch_runtime import load as load_checkpoint

    return load_checkpoint(folder / f"compressed-{precision}", precision, threads)
