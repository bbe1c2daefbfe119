"""Shapes of Whisper models in numbers, without loading any."""

from dataclasses import dataclass, replace
from typing import Any

POSITIONS_PER_SECOND = 50
"""Of the encoder: log-mel frames come every 10 ms, and its second convolution takes every other."""


@dataclass(frozen=True)
class WhisperShape:
    """What decides a Whisper model's size."""

    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    vocabulary: int
    mel_bins: int = 80
    source_positions: int = 1500
    target_positions: int = 448
    ffn: int = 0
    """Inner width of the feed-forward blocks; 0 for four times the width."""
    encoder_ffn: int = 0
    """The encoder's, where it has another; 0 for the same."""
    encoder_heads: int = 0
    """Heads in each encoder layer, where some have left; 0 for all."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WhisperShape":
        """From the values of a config.json."""
        return cls(
            config["d_model"], config["encoder_layers"], config["decoder_layers"], config["decoder_attention_heads"],
            config["vocab_size"], config["num_mel_bins"], config["max_source_positions"],
            config["max_target_positions"], config["decoder_ffn_dim"], config["encoder_ffn_dim"],
            config.get("encoder_heads") or 0,
        )  # fmt: skip

    def cut(self, encoder_layers: int | None, decoder_layers: int) -> "WhisperShape":
        """The same at another depth; None keeps the encoder's."""
        return replace(self, encoder_layers=encoder_layers or self.encoder_layers, decoder_layers=decoder_layers)

    @property
    def neurons(self) -> tuple[int, int]:
        """In each feed-forward block of the encoder and of the decoder."""
        decoder = self.ffn or 4 * self.width
        return self.encoder_ffn or decoder, decoder

    @property
    def encoder_parameters(self) -> int:
        """Convolutions, fixed positions, layers, final norm."""
        width, heads = self.width, self.encoder_heads or self.heads
        convolutions = 3 * width * self.mel_bins + width + 3 * width * width + width
        layer = self._attention(heads * width // self.heads) + self._feed_forward(self.neurons[0]) + 4 * width
        return convolutions + self.source_positions * width + self.encoder_layers * layer + 2 * width

    @property
    def decoder_parameters(self) -> int:
        """Embedding (the head is tied to it), positions, layers, final norm."""
        width = self.width
        layer = 2 * self._attention(width) + self._feed_forward(self.neurons[1]) + 6 * width
        return (self.vocabulary + self.target_positions) * width + self.decoder_layers * layer + 2 * width

    def _attention(self, inner: int) -> int:
        return 4 * self.width * inner + 2 * inner + self.width  # the key projection has no bias

    def _feed_forward(self, inner: int) -> int:
        return 2 * self.width * inner + inner + self.width

    @property
    def parameters(self) -> int:
        """All parameters."""
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
"""OpenAI's shapes by name (openai/whisper, model card)."""

HUB_SHAPES = {f"openai/whisper-{name}": shape for name, shape in WHISPER_SHAPES.items()} | {
    f"openai/whisper-{name}.en": replace(WHISPER_SHAPES[name], vocabulary=51864)
    for name in ("tiny", "base", "small", "medium")
}
"""The same by Hub id, so that `check` needs no network."""
