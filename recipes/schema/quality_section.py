"""TODO: recipes.schema.quality_section."""

from typing import Literal

from pydantic import Field

from recipes.schema.section import Section


class QualitySection(Section):
    """Which labels training uses; null switches a test off. Runs in seconds on finished labels."""

    max_wer: float | None = Field(default=None, gt=0)
    """Largest WER(label, reference), a fraction; CER in languages written without spaces."""
    normalizer: Literal["auto", "basic", "english", "none"] = "auto"
    """Text normaliser of that comparison; `auto`: english for English if the teacher has its table, else basic."""
    min_logprob: float | None = None
    """Least mean natural-log probability of a label's tokens."""
    max_compression_ratio: float | None = Field(default=2.4, gt=0)
    """Largest zlib compression ratio of a label; above it the text repeats itself."""
    max_repeats: int | None = Field(default=4, gt=0)
    """Most times in a row that one group of one to four words may stand."""
    max_characters_per_second: float | None = Field(default=40.0, gt=0)
    """Most characters a second of audio."""
    max_no_speech: float | None = Field(default=0.6, gt=0, le=1)
    """Largest probability of no speech, where the label is a guess too (below labels.fallback_logprob)."""
