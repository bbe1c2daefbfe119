"""The `quality` section: which labels are good enough to train on."""

from typing import Literal

from pydantic import Field

from recipes.schema.section import Section


class QualitySection(Section):
    """Tests that a label must pass to be used in training. Null switches a test off. The stage reads finished labels
    and takes seconds, so thresholds are cheap to change."""

    max_wer: float | None = Field(default=None, gt=0)
    """Maximum word error rate of the label against the reference transcript, as a fraction. The character error rate is
    used for languages written without spaces."""
    normalizer: Literal["auto", "basic", "english", "none"] = "auto"
    """Text normalizer applied before that comparison. `auto` is `english` for English if the teacher ships its spelling
    table, else `basic`."""
    min_logprob: float | None = None
    """Minimum mean natural-log probability of the label's tokens."""
    max_compression_ratio: float | None = Field(default=2.4, gt=0)
    """Maximum zlib compression ratio of the label. Text with a higher ratio repeats itself; 2.4 is Whisper's own
    limit."""
    max_repeats: int | None = Field(default=4, gt=0)
    """Maximum number of times that the same group of one to four words may occur in a row."""
    max_characters_per_second: float | None = Field(default=40.0, gt=0)
    """Maximum number of characters per second of audio."""
    max_no_speech: float | None = Field(default=0.6, gt=0, le=1)
    """Maximum probability that there is no speech. Applies only to labels that are also uncertain (mean log probability
    below `labels.fallback_logprob`). 0.6 is Whisper's own limit."""
