"""TODO: data_prep.labels.quality_checks."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_prep.labels.label_store import Label, read_labels
from eval.decoding.repetition import count_repeats
from eval.scoring.error_rates import ErrorCounts, Normalize, compression_ratio, count_errors, normalizer
from recipes.core.model_folder import resolve_model_folder
from recipes.schema.quality_section import QualitySection
from recipes.schema.recipe import Recipe

UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Languages written without spaces between words: their error rate is counted in characters."""

EXAMPLES = 10


@dataclass(frozen=True)
class LabelSignals:
    """What is known of one label without listening to it."""

    edits: int | None
    """Wrong words against the reference, or characters for an unspaced language; of normalised texts."""
    units: int | None
    """Words, or characters, of the reference."""
    mean_logprob: float
    compression_ratio: float
    repeats: int
    """Most times in a row that a group of one to four words stands."""
    characters_per_second: float
    no_speech_prob: float

    @property
    def error_rate(self) -> float | None:
        """WER, or CER for an unspaced language; a fraction, None without a reference."""
        return self.edits / self.units if self.edits is not None and self.units else None


@dataclass(frozen=True)
class QualityVerdict:
    """One row of quality.parquet."""

    id: str
    kept: bool
    reason: str | None
    signals: LabelSignals


def normalizer_by_language(recipe: Recipe) -> Callable[[str | None], Normalize]:
    """The text normaliser of a language."""
    folder, name = resolve_model_folder(recipe.teacher.model), recipe.quality.normalizer
    if name != "auto":
        chosen = normalizer(name, folder)
        return lambda _language: chosen
    basic = normalizer("basic", folder)
    english = normalizer("english", folder) if (folder / "normalizer.json").is_file() else basic
    return lambda language: english if language in ("en", None) else basic


def measure_label(label: Label, normalize: Normalize) -> LabelSignals:
    """The signals of one label."""
    text = label.text
    errors = count_label_errors(label.reference, text, normalize, label.language)
    return LabelSignals(
        edits=int(errors.total[0]) if errors else None,
        units=int(errors.units[0]) if errors else None,
        mean_logprob=label.plain.mean_logprob,
        compression_ratio=compression_ratio(text),
        repeats=count_repeats(text.split() if label.language not in UNSPACED else list(text)),
        characters_per_second=len(text) / label.seconds if label.seconds else 0.0,
        no_speech_prob=label.no_speech_prob,
    )


def count_label_errors(
    reference: str | None, text: str, normalize: Normalize, language: str | None
) -> ErrorCounts | None:
    """Edits between the texts, in characters for an unspaced language; None without a reference.

    Both pass the same normaliser, which folds case as far as the script has any.
    """
    wanted = normalize(reference) if reference else ""
    if not wanted:
        return None
    said, characters = normalize(text), language in UNSPACED
    if characters:
        wanted, said = wanted.replace(" ", ""), said.replace(" ", "")
    return count_errors([wanted], [said], characters=characters)


def judge_label(label: Label, signals: LabelSignals, quality: QualitySection, guess: float = -1.0) -> QualityVerdict:
    """Kept, or the first reason why not."""
    tests: list[tuple[str, bool]] = [
        (f"no label: {label.error}", label.error is not None),
        ("empty label", not label.text),
        ("no end of text", not label.plain.ended),
    ]
    limits = [
        ("error rate above", signals.error_rate, quality.max_wer),
        ("compression ratio above", signals.compression_ratio, quality.max_compression_ratio),
        ("repeats above", float(signals.repeats), quality.max_repeats),
        ("characters a second above", signals.characters_per_second, quality.max_characters_per_second),
    ]
    tests += [
        (f"{name} {limit:g}", value > limit) for name, value, limit in limits if limit is not None and value is not None
    ]
    if quality.min_logprob is not None:
        tests.append(
            (f"mean log-probability below {quality.min_logprob:g}", signals.mean_logprob < quality.min_logprob)
        )
    if quality.max_no_speech is not None:
        silent = signals.no_speech_prob > quality.max_no_speech and signals.mean_logprob < guess
        tests.append((f"no speech above {quality.max_no_speech:g}", silent))
    reason = next((name for name, failed in tests if failed), None)
    return QualityVerdict(label.id, reason is None, reason, signals)


def summarise_quality(labels: Sequence[Label], verdicts: Sequence[QualityVerdict]) -> dict[str, Any]:
    """Everything the report shows of the labels' quality."""
    pairs = list(zip(labels, verdicts, strict=True))
    hours = {True: 0.0, False: 0.0}
    for label, verdict in pairs:
        hours[verdict.kept] += label.seconds / 3600
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.reason)
    ranked = sorted(pairs, key=lambda pair: _doubt(pair[1].signals))
    kept = [pair for pair in ranked if pair[1].kept]
    dropped = [pair for pair in ranked if not pair[1].kept]
    rates = [verdict.signals.error_rate for verdict in verdicts if verdict.signals.error_rate is not None]
    signal, values = ("error rate", [min(rate, 1.0) for rate in rates]) if rates else (
        "mean log-probability", [verdict.signals.mean_logprob for verdict in verdicts]
    )  # fmt: skip
    heights, edges = np.histogram(values, bins=20)
    return {
        "kept": len(kept), "dropped": dict(reasons.most_common()),
        "rates": {"kept_hours": round(hours[True], 4), "dropped_hours": round(hours[False], 4),
                  "error_rate": _corpus_rate(verdicts)},
        "histogram": {"signal": signal, "edges": edges.tolist(), "counts": heights.tolist()},
        "worst_kept": [_shown(*pair) for pair in itertools.islice(reversed(kept), EXAMPLES)],
        "best_dropped": [_shown(*pair) for pair in dropped[:EXAMPLES]],
    }  # fmt: skip


def _corpus_rate(verdicts: Sequence[QualityVerdict]) -> float | None:
    """Edits over units of all labels that have a reference; a fraction."""
    units = sum(verdict.signals.units or 0 for verdict in verdicts)
    return sum(verdict.signals.edits or 0 for verdict in verdicts) / units if units else None


def _doubt(signals: LabelSignals) -> tuple[float, float]:
    """Sorts the best first: by error rate where there is a reference, then by how sure the teacher was."""
    return (signals.error_rate or 0.0, -signals.mean_logprob)


def _shown(label: Label, verdict: QualityVerdict) -> dict[str, Any]:
    return {"id": label.id, "seconds": round(label.seconds, 2), "reference": label.reference, "text": label.text,
            "reason": verdict.reason, "error_rate": verdict.signals.error_rate, **asdict(verdict.signals)}  # fmt: skip


def kept_labels(root: Path, *, distributions: bool = False) -> list[Label]:
    """The labels that the quality stage of a run kept."""
    verdicts = pq.read_table(root / "quality" / "quality.parquet", columns=["id", "kept"]).to_pylist()
    kept = {row["id"] for row in verdicts if row["kept"]}
    return [label for label in read_labels(root / "labels", distributions=distributions) if label.id in kept]
