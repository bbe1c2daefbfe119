"""Decide which labels are used for training: measure signals of each label and compare them with the recipe's limits.

No audio is read: the signals come from the label's text, the teacher's scores and, if there is one, the reference
transcript.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.labels.label_store import Label, read_labels
from eval.decoding.repetition import count_repeats
from eval.scoring.error_rates import ErrorCounts, Normalize, compression_ratio, count_errors, normalizer
from recipes.schema.eval_section import Normalizer
from recipes.schema.quality_section import QualitySection

UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Languages written without spaces between words. Their error rate is a character error rate."""


@dataclass(frozen=True)
class LabelSignals:
    """What can be measured of a label without its audio."""

    edits: int | None
    """Edits between the normalized label and reference, in words or, in an unspaced language, characters."""
    units: int | None
    """Words, or characters, of the normalized reference."""
    mean_logprob: float
    """Mean natural-log probability of the label's tokens."""
    compression_ratio: float
    """Length of the text over its zlib-compressed length."""
    repeats: int
    """The largest number of times in a row that the text repeats a group of one to four words."""
    characters_per_second: float
    no_speech_prob: float

    @property
    def error_rate(self) -> float | None:
        """WER, or CER in an unspaced language, as a fraction; None without a reference."""
        return self.edits / self.units if self.edits is not None and self.units else None


@dataclass(frozen=True)
class QualityVerdict:
    """Whether a label is kept; one row of quality.parquet."""

    id: str
    kept: bool
    reason: str | None
    """The first limit that the label exceeds; None if it is kept."""
    signals: LabelSignals


def normalizer_by_language(name: Normalizer | Literal["auto"], teacher: Path) -> Callable[[str | None], Normalize]:
    """Return a function from a language code to the text normalizer for that language.

    Args:
        name: A normalizer for all languages, or `auto`: `english` for English if the teacher has its table of
            spellings, otherwise `basic`.
        teacher: The teacher's model folder, which may hold that table.
    """
    if name != "auto":
        chosen = normalizer(name, teacher)
        return lambda _language: chosen
    basic = normalizer("basic", teacher)
    english = normalizer("english", teacher) if (teacher / "normalizer.json").is_file() else basic
    return lambda language: english if language in ("en", None) else basic


def measure_label(label: Label, normalize: Normalize) -> LabelSignals:
    """Measure the signals of a label."""
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
    """Count the edits between label and reference: characters in an unspaced language, otherwise words.

    Both texts pass through the same normalizer, which folds case in scripts that have it. Returns None if there is no
    reference, or if nothing of it is left after normalization.
    """
    reference = normalize(reference) if reference else ""
    if not reference:
        return None
    hypothesis, characters = normalize(text), language in UNSPACED
    if characters:
        reference, hypothesis = reference.replace(" ", ""), hypothesis.replace(" ", "")
    return count_errors([reference], [hypothesis], characters=characters)


def judge_label(
    label: Label, signals: LabelSignals, quality: QualitySection, guess_logprob: float = -1.0
) -> QualityVerdict:
    """Compare a label with the limits of the recipe.

    Args:
        label: The label.
        signals: Its signals.
        quality: The limits; None switches a limit off.
        guess_logprob: Mean log-probability below which a label is a guess. The limit on the probability of no speech
            applies to guesses only.
    """
    checks: list[tuple[str, bool]] = [
        (f"no label: {label.error}", label.error is not None),
        ("empty label", not label.text),
        ("no end of text", not label.plain.ended),
    ]
    upper_limits = [
        ("error rate above", signals.error_rate, quality.max_wer),
        ("compression ratio above", signals.compression_ratio, quality.max_compression_ratio),
        ("repeats above", float(signals.repeats), quality.max_repeats),
        ("characters a second above", signals.characters_per_second, quality.max_characters_per_second),
    ]
    checks += [
        (f"{name} {limit:g}", value > limit)
        for name, value, limit in upper_limits
        if limit is not None and value is not None
    ]
    if quality.min_logprob is not None:
        too_improbable = signals.mean_logprob < quality.min_logprob
        checks.append((f"mean log-probability below {quality.min_logprob:g}", too_improbable))
    if quality.max_no_speech is not None:
        silent = signals.no_speech_prob > quality.max_no_speech and signals.mean_logprob < guess_logprob
        checks.append((f"no speech above {quality.max_no_speech:g}", silent))
    reason = next((name for name, failed in checks if failed), None)
    return QualityVerdict(label.id, reason is None, reason, signals)


_VERDICT_SCHEMA = pa.schema(
    [("id", pa.string()), ("kept", pa.bool_()), ("reason", pa.string()), ("edits", pa.int32()), ("units", pa.int32()),
     ("mean_logprob", pa.float64()), ("compression_ratio", pa.float64()), ("repeats", pa.int32()),
     ("characters_per_second", pa.float64()), ("no_speech_prob", pa.float64())]
)  # fmt: skip


def write_verdicts(verdicts: Sequence[QualityVerdict], folder: Path) -> None:
    """Write quality.parquet: id, kept, reason and all signals of each label."""
    rows = [
        {"id": verdict.id, "kept": verdict.kept, "reason": verdict.reason, **asdict(verdict.signals)}
        for verdict in verdicts
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=_VERDICT_SCHEMA), folder / "quality.parquet")


def kept_labels(root: Path, *, distributions: bool = False) -> list[Label]:
    """Read the labels of a run that its quality stage has kept.

    Args:
        root: Folder of the run, which holds the finished stages `labels` and `quality`.
        distributions: Also read the stored logits.
    """
    rows = pq.read_table(root / "quality" / "quality.parquet", columns=["id", "kept"]).to_pylist()
    kept_ids = {row["id"] for row in rows if row["kept"]}
    return [label for label in read_labels(root / "labels", distributions=distributions) if label.id in kept_ids]
