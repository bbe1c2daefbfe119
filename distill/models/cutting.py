"""TODO: distill.models.cutting."""

import copy
import re
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from recipes.core.errors import UserError

_LAYER = re.compile(r"(model\.(?:encoder|decoder)\.layers\.)(\d+)(\..*)")


def spaced_layers(teacher_layers: int, student_layers: int, part: str) -> list[int]:
    """Indices of the kept layers: evenly spaced from the first to the last; the last alone for one layer."""
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(
            f"student.{part}_layers: expected 1 to {teacher_layers}, the teacher's depth, found {student_layers}"
        )
    if student_layers == 1:
        return [teacher_layers - 1]
    return [int(layer) for layer in np.linspace(0, teacher_layers - 1, student_layers).round()]


def cut_layers(
    teacher: WhisperForConditionalGeneration, encoder: list[int], decoder: list[int]
) -> WhisperForConditionalGeneration:
    """A copy of the teacher with these layers only."""
    config = copy.deepcopy(teacher.config)
    config.encoder_layers = config.num_hidden_layers = len(encoder)
    config.decoder_layers = len(decoder)
    if getattr(config, "low_rank", None):
        config.low_rank = _renumbered(config.low_rank, encoder, decoder)
    return with_weights(teacher, type(teacher)(config), _renumbered(teacher.state_dict(), encoder, decoder))


def with_weights(
    source: WhisperForConditionalGeneration, model: WhisperForConditionalGeneration, weights: dict[str, torch.Tensor]
) -> WhisperForConditionalGeneration:
    """The model with these weights and all else that the source says of decoding; in evaluation mode."""
    model.load_state_dict(weights)
    model.tie_weights()
    model.generation_config = source.generation_config
    return model.eval()


def _renumbered(values: dict[str, Any], encoder: list[int], decoder: list[int]) -> dict[str, Any]:
    """By the names in a model of these layers only; values of other layers are dropped."""
    kept = {}
    for name, value in values.items():
        if (found := _LAYER.match(name)) is not None:
            prefix, number, rest = found.groups()
            layers = encoder if ".encoder." in prefix else decoder
            if int(number) not in layers:
                continue
            name = f"{prefix}{layers.index(int(number))}{rest}"
        kept[name] = value
    return kept


def reinitialise(like: WhisperForConditionalGeneration, seed: int) -> WhisperForConditionalGeneration:
    """Random weights in the same shape.

    transformers draws every weight with a standard deviation of 0.02, which leaves the audio in a small model a tenth
    of the sinusoidal positions it is added to: nothing was learnt of it in a thousand steps. He's initialisation of the
    convolutions (He et al. 2015, arXiv 1502.01852) makes both alike.
    """
    torch.manual_seed(seed)
    model = type(like)(like.config)
    for convolution in (model.model.encoder.conv1, model.model.encoder.conv2):
        torch.nn.init.kaiming_normal_(convolution.weight)
    model.generation_config = like.generation_config
    return model
