"""Whisper with pairs of narrow linear layers in place of some wide ones.

Saved beside the weights it belongs to, whose config.json names each replaced layer and its rank under `low_rank`. Needs
torch and transformers alone, so that plain transformers loads the folder as well.
"""

from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration


def pair(inputs: int, outputs: int, rank: int) -> nn.Sequential:
    """Inputs to `rank` numbers to outputs: two plain layers, so that exporters and quantisers meet nothing new."""
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))


class SottovoceForConditionalGeneration(WhisperForConditionalGeneration):
    """The model that `config.low_rank` (layer's name to rank) describes."""

    def __init__(self, config: WhisperConfig):
        super().__init__(config)
        for name, rank in config.low_rank.items():
            whole = self.get_submodule(name)
            self.set_submodule(name, pair(whole.in_features, whole.out_features, rank))


# From here on `save_pretrained` writes this file and its name in config.json.
SottovoceForConditionalGeneration.register_for_auto_class("AutoModelForSpeechSeq2Seq")
