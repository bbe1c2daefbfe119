"""Optimiser, learning rate schedule, low-rank adapters and moving average."""

import copy
import math
import re
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import WhisperForConditionalGeneration

from recipes.core.errors import UserError
from recipes.schema.train_section import LoraOptions, TrainSection


def build_optimizer(
    section: TrainSection, parameters: Iterable[torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW with betas 0.9 and 0.999, with 8-bit moments if the section asks for them.

    Raises UserError if bitsandbytes has no 8-bit kernel for the device.
    """
    parameters = list(parameters)
    settings: dict[str, Any] = {"lr": section.learning_rate, "weight_decay": section.weight_decay}
    if section.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    from bitsandbytes.optim.adamw import AdamW8bit

    try:  # one step on a throwaway weight, to fail early
        probe = torch.nn.Parameter(torch.ones(4096, device=device))
        probe.grad = torch.ones_like(probe)
        AdamW8bit([probe], **settings).step()
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{section.name}.optimizer: expected adamw_8bit to work on {device}, found {reason}; use adamw"
        ) from error
    eight_bit: torch.optim.Optimizer = AdamW8bit(parameters, **settings)
    return eight_bit


def learning_rate_at(section: TrainSection, step: int) -> float:
    """Return the learning rate of a step, counted from 1: a linear warm-up, then `section.schedule`."""
    if step <= section.warmup_steps:
        return section.learning_rate * step / section.warmup_steps
    remaining = (section.steps - step + 1) / max(1, section.steps - section.warmup_steps)
    cosine = 0.5 - 0.5 * math.cos(math.pi * remaining)
    factor = {"linear": remaining, "cosine": cosine, "constant": 1.0}[section.schedule]
    return section.learning_rate * factor


def add_adapters(student: WhisperForConditionalGeneration, lora: LoraOptions, *, encoder: bool) -> None:
    """Insert low-rank adapters (Hu et al. 2021, arXiv 2106.09685) into the student in place, and freeze its weights.

    The encoder gets adapters only if `encoder` is true. Raises UserError if the student has no layers of these names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if missing := [name for name in lora.targets if not any(key.endswith(name) for key, _ in student.named_modules())]:
        raise UserError(
            f"lora.targets: expected names of the student's linear layers, found {', '.join(missing)}; correct or "
            "remove them"
        )
    target = re.compile(rf"\.({'|'.join(lora.targets)})(\.[01])?$")  # both layers of a low-rank pair
    targets = [
        name
        for name, module in student.named_modules()
        if isinstance(module, torch.nn.Linear) and target.search(name) and (encoder or ".encoder." not in name)
    ]
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    student.requires_grad_(False)
    inject_adapter_in_model(settings, student)


def merge_adapters(student: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Return a copy of the student with its adapters merged into the weights; the student itself if it has none."""
    # Adapters exist only if peft has been imported. Importing it loads the compiler, which takes two seconds.
    if "peft" not in sys.modules:
        return student
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(module, LoraLayer) for module in student.modules()):
        return student
    merged = copy.deepcopy(student)
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            merged.set_submodule(name, module.get_base_layer())
    return merged


def moving_average(student: WhisperForConditionalGeneration, decay: float) -> AveragedModel:
    """Return an exponential moving average of the student; call its `update_parameters` after each step."""
    return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))
