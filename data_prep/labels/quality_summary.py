"""Summary of the quality stage for the report (quality.json): counts, rates, a histogram and doubtful labels."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from data_prep.labels.label_store import Label
from data_prep.labels.quality_checks import LabelSignals, QualityVerdict

EXAMPLES = 10
"""Labels shown of each kind."""

_BINS = 20


class VerdictRates(TypedDict):
    """Hours of audio by verdict, and the error rate."""

    kept_hours: float
    dropped_hours: float
    error_rate: float | None
    """Edits over units of all labels that have a reference, a fraction; None without any reference."""


class SignalHistogram(TypedDict):
    """Histogram of the signal that describes the labels best."""

    signal: str
    """`error rate`, cut at 1, or, without any reference, `mean log-probability`."""
    edges: list[float]
    counts: list[int]


class DoubtfulLabel(TypedDict):
    """A label that the report shows, with its signals."""

    id: str
    seconds: float
    reference: str | None
    text: str
    reason: str | None
    error_rate: float | None
    edits: int | None
    units: int | None
    mean_logprob: float
    compression_ratio: float
    repeats: int
    characters_per_second: float
    no_speech_prob: float


class QualityFile(TypedDict):
    """The contents of quality.json."""

    kept: int
    dropped: dict[str, int]
    """Number of dropped labels by reason, the most frequent reason first."""
    rates: VerdictRates
    histogram: SignalHistogram
    worst_kept: list[DoubtfulLabel]
    best_dropped: list[DoubtfulLabel]


def summarise_quality(labels: Sequence[Label], verdicts: Sequence[QualityVerdict]) -> QualityFile:
    """Summarize the verdicts, with the worst labels that were kept and the best that were dropped."""
    best_first = sorted(zip(labels, verdicts, strict=True), key=lambda pair: _doubt(pair[1].signals))
    kept = [pair for pair in best_first if pair[1].kept]
    dropped = [pair for pair in best_first if not pair[1].kept]
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.reason)
    return {
        "kept": len(kept),
        "dropped": dict(reasons.most_common()),
        "rates": {
            "kept_hours": _hours(labels, verdicts, kept=True),
            "dropped_hours": _hours(labels, verdicts, kept=False),
            "error_rate": _corpus_error_rate(verdicts),
        },
        "histogram": _histogram(verdicts),
        "worst_kept": [_example(*pair) for pair in itertools.islice(reversed(kept), EXAMPLES)],
        "best_dropped": [_example(*pair) for pair in dropped[:EXAMPLES]],
    }


def _hours(labels: Sequence[Label], verdicts: Sequence[QualityVerdict], *, kept: bool) -> float:
    pairs = zip(labels, verdicts, strict=True)
    return round(sum(label.seconds / 3600 for label, verdict in pairs if verdict.kept == kept), 4)


def _corpus_error_rate(verdicts: Sequence[QualityVerdict]) -> float | None:
    units = sum(verdict.signals.units or 0 for verdict in verdicts)
    return sum(verdict.signals.edits or 0 for verdict in verdicts) / units if units else None


def _histogram(verdicts: Sequence[QualityVerdict]) -> SignalHistogram:
    rates = [verdict.signals.error_rate for verdict in verdicts if verdict.signals.error_rate is not None]
    signal, values = "error rate", [min(rate, 1.0) for rate in rates]
    if not rates:
        signal, values = "mean log-probability", [verdict.signals.mean_logprob for verdict in verdicts]
    counts, edges = np.histogram(values, bins=_BINS)
    return {"signal": signal, "edges": edges.tolist(), "counts": counts.tolist()}


def _doubt(signals: LabelSignals) -> tuple[float, float]:
    """Return a sort key that puts the best label first: by error rate if known, then by the teacher's confidence."""
    return (signals.error_rate or 0.0, -signals.mean_logprob)


def _example(label: Label, verdict: QualityVerdict) -> DoubtfulLabel:
    signals = verdict.signals
    return {
        "id": label.id,
        "seconds": round(label.seconds, 2),
        "reference": label.reference,
        "text": label.text,
        "reason": verdict.reason,
        "error_rate": signals.error_rate,
        "edits": signals.edits,
        "units": signals.units,
        "mean_logprob": signals.mean_logprob,
        "compression_ratio": signals.compression_ratio,
        "repeats": signals.repeats,
        "characters_per_second": signals.characters_per_second,
        "no_speech_prob": signals.no_speech_prob,
    }
