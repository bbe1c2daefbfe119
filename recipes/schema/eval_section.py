"""The `eval` section: how accuracy is measured."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from recipes.schema.section import Section

Normalizer = Literal["basic", "english", "none"]


class NoiseOptions(Section):
    """Accuracy on the test sets with added noise, and words invented on noise without speech."""

    folder: Path | None = None
    """Folder of noise recordings. Null generates white and pink noise."""
    files: list[str] = Field(default=["*"], min_length=1)
    """Glob patterns of the files in `folder` to use, such as [`*noise*`] if it also holds room impulse responses."""
    snr_db: list[float] = Field(default=[20.0, 10.0, 5.0, 0.0], min_length=1)
    """Signal-to-noise ratios to test, in dB, relative to the power of the whole clip. A clip gets the same noise at all
    of them."""
    utterances: int = Field(default=100, gt=0)
    """Number of utterances of each test set, evenly spaced."""
    alone: int = Field(default=10, ge=0)
    """Number of windows that contain only noise; one of digital silence is added. Every word in their transcripts is
    invented."""


class LongFormOptions(Section):
    """Accuracy on recordings that are longer than the window of the model."""

    folder: Path | None = None
    """Audio folder with metadata.jsonl or .csv (`file_name`, `text`). Null joins utterances of each test set."""
    modes: list[Literal["sequential", "chunked"]] = Field(default=["sequential", "chunked"], min_length=1)
    """Ways to transcribe: `sequential` moves the window by the predicted timestamps, `chunked` joins the texts of
    overlapping windows."""
    joined_seconds: float = Field(default=60.0, gt=0)
    """Minimum length of a joined recording, in seconds. Utterances are joined speaker by speaker."""
    pause_seconds: float = Field(default=0.5, ge=0)
    """Silence after each joined utterance, in seconds."""
    recordings: int = Field(default=10, gt=0)
    """Maximum number of recordings from the folder or from each test set."""


class EvalSection(Section):
    """Accuracy of the teacher, the student and every export on the test split."""

    normalizer: Normalizer = "english"
    """Text normalizer applied before scoring. `english` and `basic` are Whisper's own; `basic` does not convert number
    words."""
    reference: Literal["transcript", "teacher"] = "transcript"
    """What texts are compared with. `transcript`: the transcripts of the test recordings. `teacher`: the teacher's own
    texts, for recordings without transcripts; error rates then count differences from the teacher."""
    bootstrap: int = Field(default=1000, ge=100)
    """Number of bootstrap resamples for the 95 % confidence intervals."""
    batch_size: int = Field(default=16, gt=0)
    """Clips per batch."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Maximum length of a transcript, in tokens. Null uses the limit of the model."""
    samples: int = Field(default=12, ge=0)
    """Number of transcripts of each test set that the report shows."""
    noise: NoiseOptions | None = None
    """Accuracy with noise, and words invented without speech. Null skips both."""
    long_form: LongFormOptions | None = None
    """Accuracy on recordings longer than the window. Null skips it."""
    draft: int = Field(default=0, ge=0)
    """Number of test clips, evenly spaced, on which the student drafts tokens for its teacher (speculative decoding)
    and accepted tokens are counted. 0 skips it."""
