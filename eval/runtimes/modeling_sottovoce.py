"""Whisper with fewer attention heads in the encoder and with low-rank pairs in place of some linear layers.

This file is saved into the folder of every model that needs it, so that plain transformers can load the model as well;
therefore it imports only torch and transformers. The model's config.json maps each replaced layer to its rank under
`low_rank`, and gives the number of heads of each encoder layer under `encoder_heads`.
"""

from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention

KEYS = ("low_rank", "encoder_heads")
"""Keys of config.json that Whisper itself does not have."""


def low_rank_pair(inputs: int, outputs: int, rank: int) -> nn.Sequential:
    """Return two linear layers, inputs -> rank -> outputs: plain modules, which exporters and quantizers know."""
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))


class SottovoceForConditionalGeneration(WhisperForConditionalGeneration):
    """The model that `config.encoder_heads` (a number) and `config.low_rank` (layer name to rank) describe."""

    def __init__(self, config: WhisperConfig):
        super().__init__(config)
        if (heads := getattr(config, "encoder_heads", None)) is not None:
            for layer in self.model.encoder.layers:
                _reduce_heads(layer.self_attn, heads)
        for name, rank in (getattr(config, "low_rank", None) or {}).items():
            layer = self.get_submodule(name)
            self.set_submodule(name, low_rank_pair(layer.in_features, layer.out_features, rank))


def _reduce_heads(attention: WhisperAttention, heads: int) -> None:
    """Replace the projections by ones for `heads` heads of the same width as before."""
    attention.num_heads, inner = heads, heads * attention.head_dim
    attention.k_proj = nn.Linear(attention.embed_dim, inner, bias=False)
    attention.v_proj = nn.Linear(attention.embed_dim, inner)
    attention.q_proj = nn.Linear(attention.embed_dim, inner)
    attention.out_proj = nn.Linear(inner, attention.embed_dim)


# Makes `save_pretrained` copy this file into the model folder and name the class in config.json.
SottovoceForConditionalGeneration.register_for_auto_class("AutoModelForSpeechSeq2Seq")
