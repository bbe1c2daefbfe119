"""Students as copies of another model with fewer layers, and models with random weights of the same shape."""

import copy
import re
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from recipes.core.errors import UserError

_LAYER = re.compile(r"(model\.(?:encoder|decoder)\.layers\.)(\d+)(\..*)")


def spaced_layers(teacher_layers: int, student_layers: int, part: str) -> list[int]:
    """Return indices of the layers to keep: evenly spaced from the first to the last, or only the last for one layer.

    Raises UserError, naming `student.{part}_layers`, if the teacher does not have that many layers.
    """
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
    """Return a copy of the teacher with only the given encoder and decoder layers."""
    config = copy.deepcopy(teacher.config)
    config.encoder_layers = config.num_hidden_layers = len(encoder)
    config.decoder_layers = len(decoder)
    if getattr(config, "low_rank", None):
        config.low_rank = _renumber(config.low_rank, encoder, decoder)
    return with_weights(teacher, type(teacher)(config), _renumber(teacher.state_dict(), encoder, decoder))


def with_weights(
    source: WhisperForConditionalGeneration, model: WhisperForConditionalGeneration, weights: dict[str, torch.Tensor]
) -> WhisperForConditionalGeneration:
    """Load `weights` into `model`, give it the generation config of `source`, and return it in evaluation mode."""
    model.load_state_dict(weights)
    model.tie_weights()
    model.generation_config = source.generation_config
    return model.eval()


def _renumber(values: dict[str, Any], encoder: list[int], decoder: list[int]) -> dict[str, Any]:
    """Rename the keys of per-layer values for a model with only the given layers; drop the other layers' values."""
    renumbered = {}
    for name, value in values.items():
        if (match := _LAYER.match(name)) is not None:
            prefix, number, suffix = match.groups()
            layers = encoder if ".encoder." in prefix else decoder
            if int(number) not in layers:
                continue
            name = f"{prefix}{layers.index(int(number))}{suffix}"
        renumbered[name] = value
    return renumbered


def reinitialise(model: WhisperForConditionalGeneration, seed: int) -> WhisperForConditionalGeneration:
    """Return a new model with the same shape and generation config as `model` and random weights.

    transformers draws all weights with a standard deviation of 0.02. In a small model the output of the convolutions is
    then a tenth as large as the sinusoidal positions that are added to it, and the model learnt nothing from the audio
    in a thousand steps. He's initialisation of the convolutions (He et al. 2015, arXiv 1502.01852) makes both about
    equally large.
    """
    torch.manual_seed(seed)
    random = type(model)(model.config)
    for convolution in (random.model.encoder.conv1, random.model.encoder.conv2):
        torch.nn.init.kaiming_normal_(convolution.weight)
    random.generation_config = model.generation_config
    return random
