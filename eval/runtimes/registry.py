"""One face over every runtime; the deployed ones import neither torch nor transformers.

Each runtime is a module here with `PRECISIONS`, `files(folder, precision)` and `load(folder, precision, threads)`;
what that gives has `sizes` (`format.Sizes`) beside the face.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.core.errors import UserError

if TYPE_CHECKING:
    from eval.runtimes.interface import Runtime


RUNTIMES = ("torch", "onnx", "openvino", "tflite", "mobile", "ctranslate2", "compressed_tensors")


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


def available_artefacts(folder: Path) -> Iterator[tuple[str, str]]:
    """Runtime and precision of everything a model folder holds: exports in the order of RUNTIMES, each the most exact
    first, then PyTorch, which is imported only when it is reached.
    """
    for runtime in (*RUNTIMES[1:], RUNTIMES[0]):
        for precision in _module(runtime).PRECISIONS:
            if weight_files(runtime, folder, precision):
                yield runtime, precision


def choose_artefact(folder: Path, runtime: str | None, precision: str | None) -> tuple[str, str]:
    """The first available runtime and precision among those asked for; None leaves the choice open.

    Raises UserError where the folder is none, or holds no such model.
    """
    if not folder.is_dir():
        raise UserError(f"model {folder}: expected a model folder, found none; such as runs/demo/export/model")
    found = []
    for has, kind in available_artefacts(folder):
        if runtime in (None, has) and precision in (None, kind):
            return has, kind
        found.append(f"{has} {kind}")
    asked = " ".join(word for word in (runtime, precision) if word) or "any runtime"
    raise UserError(
        f"model {folder}: expected weights for {asked}, found {', '.join(found) or 'none'}; name another folder, or "
        "export it"
    )


def _module(runtime: str) -> Any:
    if runtime not in RUNTIMES:
        raise UserError(f"runtime: expected {', '.join(RUNTIMES)}, found {runtime}")
    return import_module(f"eval.runtimes.{runtime}_runtime")
