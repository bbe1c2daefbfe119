"""One face over every runtime; the deployed ones import neither torch nor transformers."""

from pathlib import Path
from typing import TYPE_CHECKING

from recipes.errors import UserError

if TYPE_CHECKING:
    from eval.runtimes.transcriber import Runtime


def open_runtime(runtime: str, folder: Path, precision: str, threads: int) -> "Runtime":
    """Load a model behind the Runtime face; each runtime is imported only when asked for."""
    if runtime == "torch":
        import torch

        from eval.runtimes.torch import TorchRuntime, load_model

        if precision != "fp32":
            raise UserError(f"runtime torch: expected precision fp32, found {precision}; use an ONNX export for it")
        torch.set_num_threads(threads)
        return TorchRuntime(load_model(folder))
    if runtime == "onnx":
        from eval.runtimes.onnx import OnnxRuntime

        return OnnxRuntime(folder, precision, threads)
    raise UserError(f"runtime: expected torch or onnx, found {runtime}")
