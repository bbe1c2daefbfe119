"""Number of parameters and of multiply-accumulate operations of a model."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperForConditionalGeneration


def count_parameters_m(model: WhisperForConditionalGeneration) -> dict[str, float]:
    """Return the parameters of `encoder` and `decoder` in millions; the tied LM head counts once, as decoder."""
    return {
        part: round(sum(tensor.numel() for tensor in getattr(model.model, part).parameters()) / 1e6, 3)
        for part in ("encoder", "decoder")
    }


def encoder_macs_m(model: WhisperForConditionalGeneration) -> float:
    """Return the multiply-accumulates of the encoder for one window in millions, including those of the attention."""
    config = model.config
    mel_1FT = torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.model.encoder(mel_1FT)
    return round(counter.get_total_flops() / 2e6, 1)  # a multiply-accumulate is two operations
