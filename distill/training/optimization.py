"""What moves the weights: optimiser, schedule, adapters, moving average."""

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
    """AdamW with betas 0.9 and 0.999; UserError where bitsandbytes has no 8-bit kernel for the device."""
    parameters = list(parameters)
    settings: dict[str, Any] = {"lr": section.learning_rate, "weight_decay": section.weight_decay}
    if section.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    from bitsandbytes.optim.adamw import AdamW8bit

    try:  # one step on a throw-away weight tells before anything else starts
        probe = torch.nn.Parameter(torch.ones(4096, device=device))
        probe.grad = torch.ones_like(probe)
        AdamW8bit([probe], **settings).step()
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        key = f"{section.name}.optimizer"
        raise UserError(f"{key}: adamw_8bit has no kernel for {device}: {reason}; use adamw") from error
    eight_bit: torch.optim.Optimizer = AdamW8bit(parameters, **settings)
    return eight_bit


def learning_rate_at(section: TrainSection, step: int) -> float:
    """Learning rate of a step counted from 1: linear up, then as `train.schedule` says."""
    if step <= section.warmup_steps:
        return section.learning_rate * step / section.warmup_steps
    left = (section.steps - step + 1) / max(1, section.steps - section.warmup_steps)
    factor = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[section.schedule]
    return section.learning_rate * factor


def add_adapters(student: WhisperForConditionalGeneration, lora: LoraOptions, *, encoder: bool) -> None:
    """Put adapters into the student in place; everything else is frozen. Those of a frozen encoder are left out."""
    from peft import LoraConfig, inject_adapter_in_model

    if missing := [name for name in lora.targets if not any(key.endswith(name) for key, _ in student.named_modules())]:
        raise UserError(f"lora.targets: expected names of linear layers, found {', '.join(missing)}")
    wanted = re.compile(rf"\.({'|'.join(lora.targets)})(\.[01])?$")  # both layers of a low-rank pair
    targets = [
        name
        for name, module in student.named_modules()
        if isinstance(module, torch.nn.Linear) and wanted.search(name) and (encoder or ".encoder." not in name)
    ]
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    student.requires_grad_(False)
    inject_adapter_in_model(settings, student)


def merge_adapters(student: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """The student as a plain Whisper model: a copy with its adapters folded into the weights; itself without any."""
    if "peft" not in sys.modules:  # it made any adapters there are; to import it brings the compiler along, two seconds
        return student
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(module, LoraLayer) for module in student.modules()):
        return student
    whole = copy.deepcopy(student)
    for name, module in list(whole.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            whole.set_submodule(name, module.get_base_layer())
    return whole


def moving_average(student: WhisperForConditionalGeneration, decay: float) -> AveragedModel:
    """A copy whose trained weights follow the student's; `update_parameters` after each step."""
    return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))
