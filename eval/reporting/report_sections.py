"""The sections of `report/report.json` that come from other stages than `eval` and `benchmark`.

The dataclasses have the keys of the JSON file as their fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.scoring.accuracy_rows import Interval


@dataclass(frozen=True)
class ModelParts:
    """Parameters of the two halves of a model, in millions."""

    encoder: float
    decoder: float


@dataclass(frozen=True)
class StudentShape:
    """What the student keeps of its teacher."""

    teacher_parameters_m: ModelParts
    student_parameters_m: ModelParts
    decoder_layers_kept: Sequence[int]
    """Numbers of the teacher's decoder layers, from 0."""
    encoder_layers_kept: Sequence[int] = ()
    """Numbers of the teacher's encoder layers, from 0."""


@dataclass(frozen=True)
class StudentSummary(StudentShape):
    """The stage `student`."""

    teacher: str = ""
    """`teacher.model` of the recipe."""
    command: str = ""


@dataclass(frozen=True)
class SplitSize:
    """Size of one split of the corpus."""

    utterances: int
    hours: float


@dataclass(frozen=True)
class RefusedFile:
    """A recording that the corpus leaves out."""

    path: str
    reason: str


@dataclass(frozen=True)
class CorpusSummary:
    """The stage `corpus`."""

    splits: Mapping[str, SplitSize]
    refused: Sequence[RefusedFile]
    command: str = ""


@dataclass(frozen=True)
class QualityRates:
    """How much audio the quality checks keep."""

    error_rate: float | None
    """Error rate of all labels against their references, 0 to 1; None if no recording has a reference."""
    kept_hours: float | None = None
    dropped_hours: float | None = None


@dataclass(frozen=True)
class QualityHistogram:
    """Distribution of one signal over all labels."""

    signal: str
    """`error rate` or `mean log-probability`."""
    edges: Sequence[float]
    """Edges of the bins [n + 1]."""
    counts: Sequence[int]
    """Labels in each bin [n]."""


@dataclass(frozen=True)
class LabelExample:
    """A label shown in the report, with the signals that its quality is judged by."""

    id: str
    seconds: float
    reference: str | None
    text: str
    reason: str | None
    """Why the label was dropped; None if it was kept."""
    error_rate: float | None
    """Error rate against the reference, 0 to 1; None without a reference."""
    mean_logprob: float
    """Mean log-probability of the tokens, in nats."""
    edits: int | None = None
    units: int | None = None
    """Words of the reference, or characters in languages written without spaces."""
    compression_ratio: float | None = None
    repeats: int | None = None
    characters_per_second: float | None = None
    no_speech_prob: float | None = None


@dataclass(frozen=True)
class QualitySummary:
    """The stage `quality`."""

    kept: int
    dropped: Mapping[str, int]
    """Dropped labels by reason."""
    rates: QualityRates
    histogram: QualityHistogram
    worst_kept: Sequence[LabelExample]
    best_dropped: Sequence[LabelExample]
    command: str


@dataclass(frozen=True)
class LabelsSummary:
    """The stages `labels` and `quality`."""

    command: str
    utterances: int
    errors: int
    """Utterances that could not be labelled."""
    sampled: int
    """Labels decoded at a temperature above 0 because the greedy text was degenerate."""
    audio_hours: float
    mean_logprob: float | None
    """Mean log-probability of the tokens, in nats."""
    store_mb_per_hour: float | None
    """Size of the label files per hour of audio, in MB (10^6 bytes)."""
    quality: QualitySummary
    audio_seconds_per_second: float | None = None
    """Seconds of audio that are labelled per second."""
    processes: int | None = None
    seconds: float | None = None
    """Duration of the stage."""


@dataclass(frozen=True)
class ValidationPoint:
    """Validation during training."""

    step: int
    wer: float
    """In percent."""
    loss: float | None = None
    """In nats per token."""


@dataclass(frozen=True)
class TrainingSummary:
    """The stage `train` or `heal`."""

    command: str
    steps: int
    seconds: float
    best_step: int | None
    """Step whose weights became the result; None if the run was never validated."""
    train: Sequence[Mapping[str, Any]]
    """The lines of metrics.jsonl that have a loss: `step`, `loss` and its parts `ce` and `kl` in nats per token, and
    other figures that the trainer logs."""
    validation: Sequence[ValidationPoint]


@dataclass(frozen=True)
class CompressionStep:
    """The student after one method of compression; the first step is the student before any."""

    name: str
    parameters_m: ModelParts
    encoder_macs_m: float
    """Multiply-accumulate operations of the encoder for one window, in millions."""
    options: Mapping[str, Any] | None = None
    """The method's section of the recipe."""
    layers: Mapping[str, Any] | None = None
    """What the method did to each layer, as it reports it."""


@dataclass(frozen=True)
class CompressionSummary:
    """The stage `compress`."""

    command: str
    steps: Sequence[CompressionStep]


@dataclass(frozen=True)
class ErrorSummary:
    """Distance between the outputs of an export and of PyTorch."""

    max_abs: float
    mean_abs: float
    psnr_db: float
    """20 log10(largest value / root mean square error)."""


@dataclass(frozen=True)
class ExportTolerance:
    """The largest distance from PyTorch that an export may have."""

    psnr_db: float
    equal_text: float
    """Share of clips, 0 to 1."""
    wer_increase: float
    """Percentage points."""


@dataclass(frozen=True)
class ExportParity:
    """One exported artefact compared with PyTorch on the same audio."""

    name: str
    encoder: ErrorSummary
    """Encoder states."""
    logits: ErrorSummary
    equal_text: float
    """Share of clips with the same greedy tokens, 0 to 1."""
    kept: bool
    """Whether the artefact is within `tolerance`."""
    tolerance: ExportTolerance
    wer_increase: Interval | None = None
    """WER minus PyTorch's in points; None if no clip has a transcript."""
    runtime: str | None = None
    precision: str | None = None
    size_mb: float | None = None
    first_departure: str | None = None
    """Where an artefact that is beyond `tolerance` first diverges."""


@dataclass(frozen=True)
class ParitySummary:
    """The stage `export`."""

    clips: int
    command: str
    artefacts: Sequence[ExportParity]
