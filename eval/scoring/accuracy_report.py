"""The contents of `eval/wer.json`, the result of the stage `eval`, with the keys of the file as fields.

Only the standard library is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.scoring.accuracy_rows import AccuracyRow, PairedDifference


@dataclass(frozen=True)
class SampleTranscript:
    """One test clip as every system transcribed it, for the report."""

    id: str
    set: str
    """Name of its test set."""
    reference: str
    texts: Mapping[str, str]
    """Texts by system, not normalised."""


@dataclass(frozen=True)
class NoiseSettings:
    """What the noisy conditions consist of."""

    noises: Sequence[str]
    """Names of the noises, sorted."""
    utterances: int
    """Utterances at each signal-to-noise ratio."""


@dataclass(frozen=True)
class LongFormSize:
    """How much long audio one test set has."""

    recordings: int
    minutes: float


@dataclass(frozen=True)
class LongFormSettings:
    """What the long recordings are."""

    folder: str | None
    """Folder of recordings; None if utterances of the test sets were joined."""
    pause_seconds: float
    """Silence after each joined utterance, in seconds."""
    modes: Sequence[str]
    sets: Mapping[str, LongFormSize]


@dataclass(frozen=True)
class DraftScore:
    """Speculative decoding: the student drafts tokens, the teacher accepts or replaces them."""

    clips: int
    equal_text: int
    """Clips whose text is the teacher's own."""
    drafted: int
    """Tokens that the student drafted."""
    accepted: int
    """Drafted tokens that the teacher accepted."""
    passes: int
    """Forward passes of the teacher's decoder."""
    tokens: int
    """Tokens of the final texts."""
    acceptance: float | None
    """Accepted tokens per drafted token, 0 to 1; None if nothing was drafted."""
    tokens_per_pass: float | None
    """Final tokens per forward pass of the teacher; 1 without a draft."""


@dataclass(frozen=True)
class AccuracyReport:
    """The contents of `eval/wer.json`."""

    normalizer: Literal["basic", "english", "none"]
    """Text normaliser; see `eval.scoring.error_rates.normalizer`."""
    bootstrap: int
    """Resamples behind each 95 % interval."""
    sets: Sequence[str]
    """Names of the test sets."""
    command: str
    """Command line of the stage."""
    systems: Sequence[AccuracyRow]
    """The teacher first, then the student, then the exports."""
    samples: Sequence[SampleTranscript]
    noise: NoiseSettings | None = None
    long_form: LongFormSettings | None = None
    draft: DraftScore | None = None
    reference: Literal["transcript", "teacher"] = "transcript"
    """What the texts are compared with: transcripts of the recordings, or the teacher's own texts."""

    def wer_increases(self) -> dict[str, PairedDifference]:
        """Return by system its mean WER minus the teacher's, in points; the teacher itself is left out."""
        return {
            row.name: difference
            for row in self.systems
            if (difference := row.macro_intervals.versus_teacher) is not None
        }
