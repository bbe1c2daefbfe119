"""Shapes of Whisper models and their parameter counts, computed without loading a model."""

from dataclasses import dataclass, replace
from typing import Any

POSITIONS_PER_SECOND = 50
"""Encoder positions per second: log-mel frames come every 10 ms and the second convolution has stride 2."""


@dataclass(frozen=True)
class WhisperShape:
    """Everything that determines the size of a Whisper model."""

    width: int
    """Width of the hidden states (`d_model`)."""
    encoder_layers: int
    decoder_layers: int
    heads: int
    """Attention heads in each layer."""
    vocabulary: int
    """Number of tokens, special tokens included."""
    mel_bins: int = 80
    source_positions: int = 1500
    """Encoder positions; see `POSITIONS_PER_SECOND`."""
    target_positions: int = 448
    """Decoder positions: the longest token sequence."""
    ffn: int = 0
    """Inner width of the feed-forward blocks. 0 means four times `width`."""
    encoder_ffn: int = 0
    """Inner width of the encoder's feed-forward blocks if it differs from `ffn`. 0 means the same."""
    encoder_heads: int = 0
    """Heads in each encoder layer if some were pruned. 0 means `heads`."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WhisperShape":
        """Create a shape from the values of a `config.json`."""
        return cls(
            config["d_model"], config["encoder_layers"], config["decoder_layers"], config["decoder_attention_heads"],
            config["vocab_size"], config["num_mel_bins"], config["max_source_positions"],
            config["max_target_positions"], config["decoder_ffn_dim"], config["encoder_ffn_dim"],
            config.get("encoder_heads") or 0,
        )  # fmt: skip

    def cut(self, encoder_layers: int | None, decoder_layers: int) -> "WhisperShape":
        """Return this shape with other numbers of layers. None keeps the number of encoder layers."""
        return replace(self, encoder_layers=encoder_layers or self.encoder_layers, decoder_layers=decoder_layers)

    @property
    def ffn_widths(self) -> tuple[int, int]:
        """Inner widths of the feed-forward blocks: encoder, decoder."""
        decoder = self.ffn or 4 * self.width
        return self.encoder_ffn or decoder, decoder

    @property
    def encoder_parameters(self) -> int:
        """Number of encoder parameters: convolutions, fixed positions, layers and final norm."""
        width, heads = self.width, self.encoder_heads or self.heads
        convolutions = 3 * width * self.mel_bins + width + 3 * width * width + width
        layer = self._attention(heads * width // self.heads) + self._feed_forward(self.ffn_widths[0]) + 4 * width
        return convolutions + self.source_positions * width + self.encoder_layers * layer + 2 * width

    @property
    def decoder_parameters(self) -> int:
        """Number of decoder parameters: embedding (the output layer shares it), positions, layers and final norm."""
        width = self.width
        layer = 2 * self._attention(width) + self._feed_forward(self.ffn_widths[1]) + 6 * width
        return (self.vocabulary + self.target_positions) * width + self.decoder_layers * layer + 2 * width

    def _attention(self, inner: int) -> int:
        return 4 * self.width * inner + 2 * inner + self.width  # the key projection has no bias

    def _feed_forward(self, inner: int) -> int:
        return 2 * self.width * inner + inner + self.width

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.encoder_parameters + self.decoder_parameters


WHISPER_SHAPES = {
    "tiny": WhisperShape(384, 4, 4, 6, 51865),
    "base": WhisperShape(512, 6, 6, 8, 51865),
    "small": WhisperShape(768, 12, 12, 12, 51865),
    "medium": WhisperShape(1024, 24, 24, 16, 51865),
    "large-v2": WhisperShape(1280, 32, 32, 20, 51865),
    "large-v3": WhisperShape(1280, 32, 32, 20, 51866, mel_bins=128),
    "large-v3-turbo": WhisperShape(1280, 32, 4, 20, 51866, mel_bins=128),
}
"""Shapes of OpenAI's models by name (model card of openai/whisper)."""

HUB_SHAPES = {f"openai/whisper-{name}": shape for name, shape in WHISPER_SHAPES.items()} | {
    f"openai/whisper-{name}.en": replace(WHISPER_SHAPES[name], vocabulary=51864)
    for name in ("tiny", "base", "small", "medium")
}
"""Shapes of OpenAI's models by Hub id, so that `sottovoce check` needs no network."""
