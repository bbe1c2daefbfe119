"""All runtimes by name: find what a model folder holds, and load it.

A runtime's module is imported only when it is used, so that a device needs no other runtime's packages.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recipes.core.errors import UserError

if TYPE_CHECKING:
    from eval.runtimes.interface import Runtime, RuntimeModule


RUNTIMES = ("torch", "onnx", "openvino", "tflite", "mobile", "ctranslate2", "compressed_tensors")


def open_runtime(runtime: str, folder: Path, precision: str, threads: int) -> "Runtime":
    """Load the model in `folder` with a runtime that computes with `threads` threads.

    Raises UserError if the runtime or the precision is unknown, the runtime's package is not installed, files are
    missing or broken, or they belong to another model than the folder's config.json.
    """
    module = _runtime_module(runtime)
    if precision not in module.PRECISIONS:
        raise UserError(f"runtime {runtime}: expected precision {' or '.join(module.PRECISIONS)}, found {precision}")
    try:
        loaded = module.load(folder, precision, threads)
    except ModuleNotFoundError as error:
        raise UserError(f"runtime {runtime}: expected the package {error.name}, found none; pip install it") from error
    loaded.sizes.check_config(folder, f"{runtime}-{precision}")
    return loaded


def weight_files(runtime: str, folder: Path, precision: str) -> list[Path]:
    """Return the existing weight files of one artefact, those that would be shipped with it."""
    return _runtime_module(runtime).files(folder, precision)


def available_artefacts(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield runtime and precision of every artefact in a model folder.

    Exports come first, in the order of RUNTIMES, each with its most exact precision first. PyTorch comes last: its
    module is slow to import, and is imported only if a caller iterates that far.
    """
    for runtime in (*RUNTIMES[1:], RUNTIMES[0]):
        for precision in _runtime_module(runtime).PRECISIONS:
            if weight_files(runtime, folder, precision):
                yield runtime, precision


def choose_artefact(folder: Path, runtime: str | None, precision: str | None) -> tuple[str, str]:
    """Return the first available runtime and precision that match; None matches all.

    Raises UserError if `folder` is not a folder or holds no such artefact.
    """
    if not folder.is_dir():
        raise UserError(
            f"model {folder}: expected a model folder, found none; name one, such as runs/demo/export/model"
        )
    available = []
    for artefact in available_artefacts(folder):
        if runtime in (None, artefact[0]) and precision in (None, artefact[1]):
            return artefact
        available.append(" ".join(artefact))
    wanted = " ".join(name for name in (runtime, precision) if name) or "any runtime"
    raise UserError(
        f"model {folder}: expected weights for {wanted}, found {', '.join(available) or 'none'}; name another folder, "
        "or export the model"
    )


def _runtime_module(runtime: str) -> "RuntimeModule":
    if runtime not in RUNTIMES:
        raise UserError(f"runtime: expected one of {', '.join(RUNTIMES)}, found {runtime}")
    return cast("RuntimeModule", import_module(f"eval.runtimes.{runtime}_runtime"))
