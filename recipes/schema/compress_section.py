"""The `compress` section: methods that make the trained student smaller."""

from typing import Literal, Self

from pydantic import Field, model_validator

from recipes.core.errors import UserError
from recipes.schema.section import Section

PRESETS = {"acc": (0.99, 0.999), "balanced": (0.98, 0.99), "fast": (0.95, 0.97)}
"""Fraction of the variance to keep by preset: attention layers, MLP layers."""


class WindowOptions(Section):
    """A shorter input window. The later positions of the encoder are removed, and with them most of its computation."""

    seconds: int = Field(gt=0)
    """Length of the window, in seconds. Longer clips are transcribed in parts and are not used for training."""


class VocabularyOptions(Section):
    """A smaller vocabulary: all tokens that the labels use, single bytes to spell everything else, special tokens, and
    the timestamps within the window."""

    tokens: int | None = Field(default=None, gt=0)
    """Number of text tokens to keep. In addition to those that the labels use, the most common tokens that are spelled
    with the labels' characters are kept. Null adds none."""


class PruneOptions(Section):
    """Structured pruning: remove the layers, attention heads and neurons that matter least on training audio. The
    result is an ordinary dense model."""

    encoder_layers: int | None = Field(default=None, gt=0)
    """Number of encoder layers to keep: those that change the hidden states the most. Null keeps all."""
    heads: int | None = Field(default=None, gt=0)
    """Number of attention heads to keep in each encoder layer. Null keeps all."""
    ffn_width: int | None = Field(default=None, gt=0)
    """Number of neurons to keep in the feed-forward block of each encoder layer. Null keeps all."""
    decoder_ffn_width: int | None = Field(default=None, gt=0)
    """Number of neurons to keep in the feed-forward block of each decoder layer, by their importance while decoding the
    labels. Null keeps all."""

    @model_validator(mode="after")
    def _require_an_option(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"expected one of {', '.join(type(self).model_fields)}, found none")
        return self


class LowRankOptions(Section):
    """Replace linear layers of the encoder by pairs of narrower ones, using the principal components of their
    outputs."""

    preset: Literal["acc", "balanced", "fast"] = "balanced"
    """Fraction of the output variance to keep in attention and in MLP layers: `acc` 0.99 and 0.999, `balanced` 0.98 and
    0.99, `fast` 0.95 and 0.97."""
    attention: float | None = Field(default=None, gt=0, le=1)
    """Fraction of the variance to keep in q_proj, k_proj, v_proj and out_proj. Null uses that of the preset."""
    mlp: float | None = Field(default=None, gt=0, le=1)
    """Fraction of the variance to keep in fc1 and fc2. Null uses that of the preset."""
    multiple: int = Field(default=16, gt=0)
    """Ranks are rounded up to a multiple of this number, because hardware computes in blocks of such sizes."""

    @property
    def shares(self) -> tuple[float, float]:
        """Fraction of the variance to keep: attention layers, MLP layers."""
        attention, mlp = PRESETS[self.preset]
        return self.attention or attention, self.mlp or mlp


class CompressSection(Section):
    """Compression methods. They run in the order of the options below, each on the result of the previous one."""

    clips: int = Field(default=100, gt=0)
    """Number of training clips, evenly spaced, on which the methods measure the model."""
    window: WindowOptions | None = None
    """Shorten the input window. Null keeps it."""
    vocabulary: VocabularyOptions | None = None
    """Remove tokens from the vocabulary. Null keeps all."""
    prune: PruneOptions | None = None
    """Remove layers, attention heads and neurons. Null keeps all."""
    low_rank: LowRankOptions | None = None
    """Factorize the remaining linear layers of the encoder. Null keeps them."""

    @model_validator(mode="after")
    def _require_a_method(self) -> Self:
        if not self.methods:
            raise ValueError("expected a method, such as low_rank: {preset: balanced}, found none; or set it to null")
        return self

    @property
    def methods(self) -> list[tuple[str, Section]]:
        """Name and options of each method that the recipe uses, in the order in which they run."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return [(name, options) for name, options in values.items() if isinstance(options, Section)]


def require_at_most(key: str, requested: int, available: int) -> int:
    """Return `requested`, the value of `key` in this section. Raises UserError if the student has only `available`."""
    if requested > available:
        raise UserError(f"compress.{key}: expected 1 to {available}, as many as the student has, found {requested}")
    return requested
