"""One face over every runtime; the deployed ones import neither torch nor transformers.

Each runtime is a module here with `PRECISIONS`, `files(folder, precision)` and `load(folder, precision, threads)`;
what that gives has `sizes` (`format.Sizes`) beside the face.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import UserError

if TYPE_CHECKING:
    from eval.runtimes.transcriber import Runtime

RUNTIMES = ("torch", "onnx", "openvino", "tflite", "mobile", "ctranslate2")


def open_runtime(runtime: str, folder: Path, precision: str, threads: int) -> "Runtime":
    """Load a model behind the Runtime face; each runtime is imported only when asked for.

    Raises UserError for a runtime or precision that is unknown or not installed, for missing or broken files, and for
    those of another model than the folder's config.json.
    """
    module = _module(runtime)
    if precision not in module.PRECISIONS:
        raise UserError(f"runtime {runtime}: expected precision {' or '.join(module.PRECISIONS)}, found {precision}")
    try:
        opened = module.load(folder, precision, threads)
    except ModuleNotFoundError as error:
        raise UserError(f"runtime {runtime}: needs the package {error.name}, found none; pip install it") from error
    opened.sizes.check(folder, f"{runtime}-{precision}")
    checked: Runtime = opened
    return checked


def weight_files(runtime: str, folder: Path, precision: str) -> list[Path]:
    """The weight files that would be shipped; those that are there."""
    found: list[Path] = _module(runtime).files(folder, precision)
    return found


def available(folder: Path) -> list[tuple[str, str]]:
    """Runtime and precision of everything a model folder holds, the smallest exports last."""
    return [
        (runtime, precision)
        for runtime in RUNTIMES
        for precision in _module(runtime).PRECISIONS
        if weight_files(runtime, folder, precision)
    ]


def _module(runtime: str) -> Any:
    if runtime not in RUNTIMES:
        raise UserError(f"runtime: expected {', '.join(RUNTIMES)}, found {runtime}")
    return import_module(f"eval.runtimes.{runtime}")
