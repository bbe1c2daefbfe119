"""Training checkpoints: weights and optimiser state in safetensors, the rest in JSON, renamed when whole.

Random numbers need no state here: every step seeds them from (seed, step, process). The data order is a function of
the step too, so the step number is the data position.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from recipes.stage import write_json


def save_checkpoint(
    folder: Path,
    step: int,
    model: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any],
) -> None:
    """Write `step-NNNNNNN` below folder; older checkpoints are removed once it stands."""
    final = folder / f"step-{step:07d}"
    beside = folder / f".{final.name}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.items()}, beside / "model.safetensors")
    state = optimizer.state_dict()
    moments = {
        f"{parameter}.{name}": value.contiguous()
        for parameter, values in state["state"].items()
        for name, value in values.items()
    }
    save_file(moments, beside / "optimizer.safetensors")
    write_json(beside / "state.json", {"step": step, "param_groups": state["param_groups"], **extra})
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    for older in folder.glob("*step-*"):
        if older != final:
            shutil.rmtree(older)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights and optimiser state back; the JSON state is returned."""
    device = next(model.parameters()).device
    # Tied weights are stored once, so the head is missing by name.
    _, unexpected = model.load_state_dict(load_file(checkpoint / "model.safetensors", device=str(device)), strict=False)
    assert not unexpected, unexpected
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(checkpoint / "optimizer.safetensors").items():
        parameter, name = key.split(".", 1)
        moments.setdefault(int(parameter), {})[name] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": state.pop("param_groups")})
    return state
