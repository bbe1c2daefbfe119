"""The recipe's compress section: what is taken out of the student after training."""

from typing import Literal, Self

from pydantic import Field, model_validator

from recipes.core.errors import UserError
from recipes.schema.section import Section

PRESETS = {"acc": (0.99, 0.999), "balanced": (0.98, 0.99), "fast": (0.95, 0.97)}
"""Shares of the variance kept, of attention layers and of MLP layers."""


class WindowOptions(Section):
    """A shorter window: the encoder's later positions leave, and with them most of its work."""

    seconds: int = Field(gt=0)
    """Audio that the student takes in at a time, s; longer clips are read in parts, and not trained on."""


class VocabularyOptions(Section):
    """Fewer tokens: all that the labels use, single bytes for everything else, the window's own timestamps."""

    tokens: int | None = Field(default=None, gt=0)
    """Text tokens kept: beyond what the labels use, the most common ones spelled with the labels' characters; null
    adds none."""


class PruneOptions(Section):
    """Structured pruning: what is measured to matter least on training audio leaves, and the rest is whole."""

    encoder_layers: int | None = Field(default=None, gt=0)
    """Encoder layers kept, those that turn the stream of states the most; null keeps all."""
    heads: int | None = Field(default=None, gt=0)
    """Attention heads kept in each encoder layer; null keeps all."""
    ffn_width: int | None = Field(default=None, gt=0)
    """Neurons kept in the feed-forward block of each encoder layer; null keeps all."""
    decoder_ffn_width: int | None = Field(default=None, gt=0)
    """Neurons kept in the feed-forward block of each decoder layer, measured along the labels; null keeps all."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"expected one of {', '.join(type(self).model_fields)}, found none")
        return self


class LowRankOptions(Section):
    """Pairs of narrow linear layers in the encoder, by the principal components of what each layer puts out."""

    preset: Literal["acc", "balanced", "fast"] = "balanced"
    """Shares of the variance to keep, attention and MLP: acc 0.99, 0.999, balanced 0.98, 0.99, fast 0.95, 0.97."""
    attention: float | None = Field(default=None, gt=0, le=1)
    """Share of the variance to keep in q_proj, k_proj, v_proj and out_proj; null for the preset's."""
    mlp: float | None = Field(default=None, gt=0, le=1)
    """Share of the variance to keep in fc1 and fc2; null for the preset's."""
    multiple: int = Field(default=16, gt=0)
    """Ranks are multiples of this, as hardware computes them whole."""

    @property
    def shares(self) -> tuple[float, float]:
        """Of the variance, to keep in attention and in MLP layers."""
        attention, mlp = PRESETS[self.preset]
        return self.attention or attention, self.mlp or mlp


class CompressSection(Section):
    """Methods of compression, each on the result of the one before, in the order of the fields below."""

    clips: int = Field(default=100, gt=0)
    """Clips of training audio, evenly spread, that a method looks at."""
    window: WindowOptions | None = None
    """Shorten the window; null leaves it."""
    vocabulary: VocabularyOptions | None = None
    """Leave out tokens; null keeps them."""
    prune: PruneOptions | None = None
    """Take layers, heads and neurons out; null leaves them."""
    low_rank: LowRankOptions | None = None
    """Factor linear layers of what is left; null leaves them."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.methods:
            raise ValueError("expected a method, such as low_rank: {preset: balanced}, found none; or set it to null")
        return self

    @property
    def methods(self) -> list[tuple[str, Section]]:
        """Name and options of each method of this recipe, in order."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return [(name, options) for name, options in values.items() if isinstance(options, Section)]


def require_at_most(key: str, kept: int, there: int) -> int:
    """The number kept under a key of this section; UserError where the student has fewer."""
    if kept > there:
        raise UserError(f"compress.{key}: expected 1 to {there}, the student's, found {kept}")
    return kept
