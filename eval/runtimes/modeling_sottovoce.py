"""Whisper with fewer heads, and with pairs of narrow linear layers in place of some wide ones.

Saved beside the weights it belongs to. Their config.json names each replaced layer and its rank under `low_rank`, and
under `encoder_heads` how many heads each encoder layer was left. Needs torch and transformers alone, so that plain
transformers loads the folder as well.
"""

from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention

KEYS = ("low_rank", "encoder_heads")
"""What a config.json has beside Whisper's own keys."""


def low_rank_pair(inputs: int, outputs: int, rank: int) -> nn.Sequential:
    """Inputs to `rank` numbers to outputs: two plain layers, so that exporters and quantisers meet nothing new."""
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))


class SottovoceForConditionalGeneration(WhisperForConditionalGeneration):
    """The model that `config.encoder_heads` (a number) and `config.low_rank` (layer's name to rank) describe."""

    def __init__(self, config: WhisperConfig):
        super().__init__(config)
        if (heads := getattr(config, "encoder_heads", None)) is not None:
            for layer in self.model.encoder.layers:
                _narrow(layer.self_attn, heads)
        for name, rank in (getattr(config, "low_rank", None) or {}).items():
            whole = self.get_submodule(name)
            self.set_submodule(name, low_rank_pair(whole.in_features, whole.out_features, rank))


def _narrow(attention: WhisperAttention, heads: int) -> None:
    """Leave room for so many heads, each as wide as before."""
    attention.num_heads, inner = heads, heads * attention.head_dim
    attention.k_proj = nn.Linear(attention.embed_dim, inner, bias=False)
    attention.v_proj = nn.Linear(attention.embed_dim, inner)
    attention.q_proj = nn.Linear(attention.embed_dim, inner)
    attention.out_proj = nn.Linear(inner, attention.embed_dim)


# From here on `save_pretrained` writes this file and its name in config.json.
SottovoceForConditionalGeneration.register_for_auto_class("AutoModelForSpeechSeq2Seq")
