"""Structured pruning of the encoder's feed-forward blocks: neurons leave, a narrower Whisper stays.

A neuron adds its activation times its column of fc2 to the stream. Its importance is the root mean square of the first
on calibration audio times the norm of the second: the error its absence makes, as far as it is alone in that.

D width, J neurons, N positions.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distill.calibration import Calibration
from distill.compress import observe
from distill.student import rebuilt
from recipes.compression import Prune
from recipes.errors import UserError


def prune(
    model: WhisperForConditionalGeneration, section: Prune, calibration: Calibration
) -> tuple[WhisperForConditionalGeneration, dict[str, Any]]:
    """A copy of the model whose encoder layers keep their `ffn_width` most important neurons; their share a layer."""
    width = model.config.encoder_ffn_dim
    if section.ffn_width > width:
        raise UserError(f"compress.prune.ffn_width: expected 1 to {width}, the student's, found {section.ffn_width}")
    if getattr(model.config, "low_rank", None):
        raise UserError("compress.prune: expected a student of whole layers, found low-rank pairs; prune it before")
    blocks = [f"model.encoder.layers.{number}" for number in range(model.config.encoder_layers)]
    energy = {block: torch.zeros(width, dtype=torch.float64) for block in blocks}
    observe(model, calibration, {f"{block}.fc2": partial(_add_squares, energy[block]) for block in blocks})
    weights, report = model.state_dict(), dict[str, Any]()
    for block in blocks:
        importance_J = energy[block].sqrt() * weights[f"{block}.fc2.weight"].double().norm(dim=0)
        kept = importance_J.topk(section.ffn_width).indices.sort().values
        for name in ("fc1.weight", "fc1.bias"):
            weights[f"{block}.{name}"] = weights[f"{block}.{name}"][kept]
        weights[f"{block}.fc2.weight"] = weights[f"{block}.fc2.weight"][:, kept]
        share = importance_J[kept].square().sum() / importance_J.square().sum()
        report[block] = {"of": width, "neurons": section.ffn_width, "kept": round(share.item(), 6)}
    config = copy.deepcopy(model.config)
    config.encoder_ffn_dim = section.ffn_width
    return rebuilt(model, type(model)(config), weights), report


def _add_squares(energy_J: Tensor, activations_NJ: Tensor, _outputs_ND: Tensor) -> None:
    energy_J += activations_NJ.double().square().sum(0)
