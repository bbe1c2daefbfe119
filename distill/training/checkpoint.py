"""Training checkpoints: weights and optimiser state as safetensors, everything else as JSON.

A checkpoint folder gets its final name when it is complete. Random number generators need no state here: every step
seeds them from seed, step and process. The data order depends on the step as well, so the step is also the position in
the data.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import load_file, save_file

from recipes.core.atomic_files import write_json

Tensors = dict[str, torch.Tensor]
"""Weights by name."""

OptimizerState = dict[Any, dict[str, Any]]
"""The optimiser's tensors and numbers of each parameter, by the parameter's name or number."""


class SkippedStep(TypedDict):
    """A step whose loss was not finite."""

    step: int
    utterances: list[str]


class TrainerState(TypedDict):
    """The part of a checkpoint that is stored as JSON."""

    best: dict[str, Any]
    """Step, WER and loss of the best student so far; empty before the first validation."""
    skipped: list[SkippedStep]
    scaler: dict[str, Any] | None
    """State of the gradient scaler of fp16 training."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything from which training continues as if it had not been interrupted."""

    step: int
    """The last finished step."""
    models: dict[str, Tensors]
    """Weights by file name: `model` and, with a moving average, `average`."""
    moments: OptimizerState
    trainer: TrainerState


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint to `step-NNNNNNN` in `folder`, then remove older ones."""
    final = folder / f"step-{checkpoint.step:07d}"
    partial = folder / f".{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, weights in checkpoint.models.items():
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, partial / f"{name}.safetensors")
    leaves = dict(_leaves(checkpoint.moments))
    tensors = {name: value for name, value in leaves.items() if isinstance(value, torch.Tensor)}
    numbers = {name: value for name, value in leaves.items() if name not in tensors}
    save_file(_unshared(tensors), partial / "optimizer.safetensors")
    write_json(partial / "state.json", {"step": checkpoint.step, "numbers": numbers, **checkpoint.trainer})
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for older in folder.glob("*step-*"):
        if older != final:
            shutil.rmtree(older)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in `folder`, or None."""
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(path: Path, models: Iterable[str], device: torch.device) -> Checkpoint:
    """Read a checkpoint folder: the weights of the given models to `device`, the optimiser state to the CPU."""
    weights = {name: load_file(path / f"{name}.safetensors", device=str(device)) for name in models}
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    moments: OptimizerState = {}
    for key, value in [*load_file(path / "optimizer.safetensors").items(), *state["numbers"].items()]:
        parameter, *groups, name = key.split("/")
        values = moments.setdefault(int(parameter) if parameter.isdigit() else parameter, {})
        for group in groups:  # bitsandbytes nests dictionaries
            values = values.setdefault(group, {})
        values[name] = value
    trainer = TrainerState(best=state["best"], skipped=state["skipped"], scaler=state["scaler"])
    return Checkpoint(int(state["step"]), weights, moments, trainer)


def _leaves(values: dict[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dictionaries with their keys joined by `/`."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _unshared(tensors: Tensors) -> Tensors:
    """Copy tensors that share memory: 8-bit optimisers share code books, and safetensors does not store views."""
    seen: set[int] = set()
    unshared = Tensors()
    for name, tensor in tensors.items():
        unshared[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return unshared
