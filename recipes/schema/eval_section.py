"""TODO: recipes.schema.eval_section."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from recipes.schema.section import Section

Normalizer = Literal["basic", "english", "none"]


class NoiseOptions(Section):
    """The test set under noise, and noise without speech."""

    folder: Path | None = None
    """Folder of noise recordings; null makes white and pink noise."""
    files: list[str] = Field(default=["*"], min_length=1)
    """Which of its files, such as [`*noise*`] where room impulses lie beside them."""
    snr_db: list[float] = Field(default=[20.0, 10.0, 5.0, 0.0], min_length=1)
    """Signal-to-noise ratios, dB, of noise to the whole clip's power; at each the same noise under the same clip."""
    utterances: int = Field(default=100, gt=0)
    """Utterances of each test set, evenly spaced."""
    alone: int = Field(default=10, ge=0)
    """Windows of noise alone, beside one of digital silence: every word there is invented."""


class LongFormOptions(Section):
    """Recordings longer than the model's window."""

    folder: Path | None = None
    """Audio folder (metadata.jsonl or .csv with `file_name`, `text`); null joins utterances of each test set."""
    modes: list[Literal["sequential", "chunked"]] = Field(default=["sequential", "chunked"], min_length=1)
    """`sequential` follows the model's timestamps, `chunked` joins overlapping windows."""
    joined_seconds: float = Field(default=60.0, gt=0)
    """Least length of a joined recording, s; utterances follow each other speaker by speaker."""
    pause_seconds: float = Field(default=0.5, ge=0)
    """Silence after each joined utterance, s."""
    recordings: int = Field(default=10, gt=0)
    """At most so many from the folder or each test set."""


class EvalSection(Section):
    """Accuracy of teacher, student and every export on the test split."""

    normalizer: Normalizer = "english"
    """`english` and `basic` are Whisper's own; `basic` leaves number words apart."""
    bootstrap: int = Field(default=1000, ge=100)
    """Resamples behind the 95 % intervals."""
    batch_size: int = Field(default=16, gt=0)
    """Clips a batch."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest text of a clip, in tokens; null for the model's own limit."""
    samples: int = Field(default=12, ge=0)
    """Transcripts of each test set shown in the report."""
    noise: NoiseOptions | None = None
    """Accuracy under noise and words on no speech; null leaves both out."""
    long_form: LongFormOptions | None = None
    """Accuracy on recordings longer than the window; null leaves it out."""
    draft: int = Field(default=0, ge=0)
    """Test clips, evenly spaced, on which the student drafts for its teacher and acceptance is counted; 0 for none."""
