"""TODO: distill.models.model_size."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperForConditionalGeneration


def count_parameters_m(model: WhisperForConditionalGeneration) -> dict[str, float]:
    """Millions of parameters of encoder and decoder; the tied head counts once, with the decoder."""
    return {
        part: round(sum(tensor.numel() for tensor in getattr(model.model, part).parameters()) / 1e6, 3)
        for part in ("encoder", "decoder")
    }


def encoder_macs_m(model: WhisperForConditionalGeneration) -> float:
    """Millions of multiplications and additions in the encoder's pass over one window, attention's included."""
    config = model.config
    mel_1FT = torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.model.encoder(mel_1FT)
    return round(counter.get_total_flops() / 2e6, 1)  # a pair is two operations
