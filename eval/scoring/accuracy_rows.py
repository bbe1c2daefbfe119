"""The scores of one system in `eval/wer.json`, the result of the stage `eval`; `eval.scoring.accuracy_report` has the
whole file.

Rates are in percent and differences of rates in percentage points unless a field says otherwise. The dataclasses have
the keys of the JSON file as their fields. Only the standard library is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OptionalInterval:
    """A value with its 95 % interval; `low` and `high` are None if there are too few recordings to resample."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PairedDifference(Interval):
    """A system's rate minus the teacher's on the same audio, in percentage points, with its 95 % interval."""

    p_value: float | None = None
    """Two-sided p value of the permutation test that both rates are equal; None in files of older versions."""


@dataclass(frozen=True)
class SetScore:
    """Error rates of one system on one test set."""

    wer: Interval
    """Word error rate over the whole set."""
    cer: Interval
    """Character error rate over the whole set."""
    utterances: int
    words: int
    """Words of the normalised references."""
    versus_teacher: PairedDifference | None
    """WER minus the teacher's; None for the teacher itself."""
    substitutions: int = 0
    """Substituted words."""
    deletions: int = 0
    """Deleted words."""
    insertions: int = 0
    """Inserted words."""


@dataclass(frozen=True)
class MacroScore:
    """Unweighted means of the error rates over the test sets."""

    wer: float
    cer: float


@dataclass(frozen=True)
class MacroIntervals:
    """The same means with their 95 % intervals."""

    wer: Interval
    versus_teacher: PairedDifference | None
    """Mean WER minus the teacher's; None for the teacher itself."""
    cer: Interval | None = None


@dataclass(frozen=True)
class WorseClip:
    """A test clip on which a system makes more word errors than the teacher."""

    id: str
    set: str
    """Name of its test set."""
    reference: str
    """Normalised reference."""
    teacher: str
    """Normalised text of the teacher."""
    text: str
    """Normalised text of the system."""
    errors: int
    """Word errors of the system."""
    teacher_errors: int
    """Word errors of the teacher."""
    words: int
    """Words of the reference."""


@dataclass(frozen=True)
class RegressionScore:
    """A system compared with the teacher clip by clip."""

    clips: int
    worse: float
    """Share of clips with more word errors than the teacher's text, 0 to 1."""
    better: float
    """Share of clips with fewer word errors than the teacher's text, 0 to 1."""
    worst: Sequence[WorseClip]
    """The clips that lost most, the worst first."""


@dataclass(frozen=True)
class LoopingClip:
    """A test clip whose text repeats a group of words that the reference does not repeat."""

    id: str
    reference: str
    text: str


@dataclass(frozen=True)
class NoSpeechText:
    """The text that a system wrote for a window without speech."""

    clip: str
    """Name of the window: `silence`, or the noise and a number."""
    text: str


@dataclass(frozen=True)
class NoSpeechScore:
    """Words that a system wrote for windows in which nobody speaks: all of them are invented."""

    clips: int
    """Number of windows."""
    with_words: int
    """Windows for which the system wrote at least one word."""
    words: int
    """Words over all windows."""
    words_per_minute: float
    texts: Sequence[NoSpeechText]


@dataclass(frozen=True)
class HallucinationScore:
    """Text that has no counterpart in the audio."""

    insertion_rate: Interval
    """Inserted words per reference word, mean over the test sets."""
    loops: int
    """Test clips whose text repeats a group of up to four words three times in a row or more, and more often than the
    reference does."""
    clips: int
    """Test clips."""
    looping: Sequence[LoopingClip]
    """The first of the looping clips."""
    alone: NoSpeechScore | None
    """Silence and noise without speech; None if the recipe has no `eval.noise`."""


@dataclass(frozen=True)
class NoiseScore:
    """One system at one signal-to-noise ratio."""

    snr_db: float | None
    """Signal-to-noise ratio in dB; None for the same utterances without noise."""
    wer: Interval
    """Mean WER over the test sets."""
    versus_teacher: PairedDifference | None
    """Mean WER minus the teacher's on the same noisy audio; None for the teacher itself."""
    insertion_rate: float
    """Inserted words per reference word over all utterances."""


@dataclass(frozen=True)
class LongFormScore:
    """One system on the long recordings of one test set, read in one mode."""

    wer: OptionalInterval
    words: int
    """Words of the normalised references."""
    substitutions: int
    deletions: int
    insertions: int


@dataclass(frozen=True)
class AccuracyRow:
    """Everything that is counted of one system."""

    name: str
    """Such as `teacher-torch-fp32`, `onnx-int8`."""
    role: str
    """`teacher`, `student` or `export`."""
    runtime: str
    precision: str
    results: Mapping[str, SetScore]
    """Scores by test set."""
    macro: MacroScore
    macro_intervals: MacroIntervals
    regression: RegressionScore | None = None
    """None for the teacher itself."""
    hallucination: HallucinationScore | None = None
    """None in files of older versions."""
    noise: Sequence[NoiseScore] | None = None
    """Without noise first, then from the least to the most noise; None if the recipe has no `eval.noise`."""
    long_form: Mapping[str, Mapping[str, LongFormScore]] | None = None
    """By test set and by mode (`sequential`, `chunked`; `separate` for joined utterances transcribed one by one);
    None if the recipe has no `eval.long_form`."""
