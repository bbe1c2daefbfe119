"""Training checkpoints: weights and optimiser state in safetensors, the rest in JSON, renamed when whole.

Random numbers need no state here: every step seeds them from (seed, step, process). The data order is a function of
the step too, so the step number is the data position.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from recipes.core.atomic_files import write_json

Tensors = dict[str, torch.Tensor]


def save_checkpoint(
    folder: Path, step: int, models: dict[str, Tensors], moments: dict[Any, dict[str, Any]], extra: dict[str, Any]
) -> None:
    """Write `step-NNNNNNN` below folder; older checkpoints are removed once it stands.

    `models` is a file name and its weights, each; `moments` the optimiser's state by parameter.
    """
    final = folder / f"step-{step:07d}"
    beside = folder / f".{final.name}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, weights in models.items():
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, beside / f"{name}.safetensors")
    leaves = dict(_leaves(moments))
    tensors = {name: value for name, value in leaves.items() if isinstance(value, torch.Tensor)}
    numbers = {name: value for name, value in leaves.items() if name not in tensors}
    save_file(_apart(tensors), beside / "optimizer.safetensors")
    write_json(beside / "state.json", {"step": step, "numbers": numbers, **extra})
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    for older in folder.glob("*step-*"):
        if older != final:
            shutil.rmtree(older)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(
    checkpoint: Path, models: Iterable[str], device: torch.device
) -> tuple[dict[str, Tensors], dict[Any, dict[str, Any]], dict[str, Any]]:
    """Weights by file name, optimiser state by parameter, and what else was kept."""
    weights = {name: load_file(checkpoint / f"{name}.safetensors", device=str(device)) for name in models}
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    moments: dict[Any, Any] = {}
    for key, value in [*load_file(checkpoint / "optimizer.safetensors").items(), *state.pop("numbers").items()]:
        parameter, *groups, name = key.split("/")
        values = moments.setdefault(int(parameter) if parameter.isdigit() else parameter, {})
        for group in groups:  # bitsandbytes keeps its own in a dictionary of its own
            values = values.setdefault(group, {})
        values[name] = value
    return weights, moments, state


def _leaves(values: dict[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _apart(tensors: Tensors) -> Tensors:
    """Each with memory of its own: 8-bit optimisers share code books among parameters, safetensors stores no views."""
    seen: set[int] = set()
    found = Tensors()
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return found
