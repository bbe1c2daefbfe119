"""How many clips the teacher can take at once."""

from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from data_prep.teacher import Teacher

SHARE = 0.7
"""Of free memory that a batch may fill; the rest is for fragments, decoded audio and other processes."""

LARGEST = 256
"""Clips; beyond it nothing is gained: the arithmetic units are full."""


def batch_size(teacher: "Teacher") -> int:
    """Clips whose encoder pass, caches and logits fit in free memory, a power of two from 1 to 256."""
    free = _free(teacher.device) * SHARE
    size = LARGEST
    while size > 1 and size * clip_bytes(teacher) > free:
        size //= 2
    return size


def clip_bytes(teacher: "Teacher") -> float:
    """Peak bytes a clip: the larger of the encoder's activations and the decoder's caches with its logits."""
    config, weight = teacher.model.config, teacher.model.dtype.itemsize
    width, positions = config.d_model, config.max_source_positions
    # The first convolution keeps two frames a position; one layer holds input, norm, q, k, v, output and the MLP.
    encoder = positions * weight * max(4 * width, 6 * width + 2 * config.encoder_ffn_dim)
    caches = 2 * config.decoder_layers * width * weight * (positions + teacher.format.max_length)
    logits = 4 * 4 * config.vocab_size  # float32: raw, allowed, and two of the top-k and its tail
    return float(max(encoder, caches + logits) + positions * width * weight + 4 * teacher.format.window_samples)


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)
