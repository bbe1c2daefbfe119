"""Word and character error rates, counted by jiwer over a whole corpus, with bootstrap intervals."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import jiwer
import numpy as np
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from recipes.core.errors import UserError
from recipes.schema.eval_section import Normalizer

Normalize = Callable[[str], str]


def normalizer(name: Normalizer, model: Path) -> Normalize:
    """Whisper's text normaliser; `english` takes its spellings from the model folder's normalizer.json."""
    if name == "none":
        return str.strip
    if name == "basic":
        basic = BasicTextNormalizer()
        return lambda text: basic(text).strip()
    spellings = model / "normalizer.json"
    if not spellings.is_file():
        raise UserError(
            f"{spellings}: expected the spelling table of the english normaliser, found none; "
            "copy it from the teacher, or set the normalizer to basic"
        )
    english = EnglishTextNormalizer(json.loads(spellings.read_text()))
    return lambda text: english(text).strip()


@dataclass(frozen=True)
class ErrorCounts:
    """Edit counts of each utterance [U] against references of `units` words or characters [U]."""

    substitutions: np.ndarray
    deletions: np.ndarray
    insertions: np.ndarray
    units: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Edits of each utterance [U]."""
        return self.substitutions + self.deletions + self.insertions

    def take(self, places: Sequence[int]) -> "ErrorCounts":
        """Those of some of the utterances."""
        return ErrorCounts(*(counts[list(places)] for counts in astuple(self)))

    @property
    def rate(self) -> float:
        """Edits over reference units of the whole corpus, in percent."""
        return 100.0 * float(self.total.sum()) / max(1, int(self.units.sum()))


def count_errors(references: Sequence[str], hypotheses: Sequence[str], *, characters: bool = False) -> ErrorCounts:
    """Edits of normalised texts, by utterance. An empty reference counts its hypothesis as insertions."""
    process = jiwer.process_characters if characters else jiwer.process_words
    rows = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        if not reference:  # jiwer refuses these
            inserted = len(hypothesis) if characters else len(hypothesis.split())
            rows.append((0, 0, inserted, 0))
            continue
        counted = process(reference, hypothesis)
        units = counted.hits + counted.substitutions + counted.deletions
        rows.append((counted.substitutions, counted.deletions, counted.insertions, units))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return ErrorCounts(*columns)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(errors: ErrorCounts, minus: ErrorCounts | None = None, *, resamples: int, seed: int) -> Interval:
    """Percentile bootstrap over utterances of the error rate in percent, or of its difference to `minus`.

    The difference is paired: both systems are resampled on the same utterances.
    """
    return macro_bootstrap([errors], None if minus is None else [minus], resamples=resamples, seed=seed)


def macro_bootstrap(
    sets: Sequence[ErrorCounts], minus: Sequence[ErrorCounts] | None = None, *, resamples: int, seed: int
) -> Interval:
    """The same of the unweighted mean over test sets, each resampled within itself."""
    draw = np.random.default_rng(seed)
    values, rates_R = [], np.zeros(resamples)
    for index, errors in enumerate(sets):
        edits = errors.total if minus is None else errors.total - minus[index].total
        count = len(edits)
        draws_RU = draw.integers(0, count, (resamples, count))
        rates_R += 100.0 * edits[draws_RU].sum(axis=1) / np.maximum(1, errors.units[draws_RU].sum(axis=1))
        values.append(100.0 * float(edits.sum()) / max(1, int(errors.units.sum())))
    low, high = np.percentile(rates_R / len(sets), [2.5, 97.5])
    return Interval(sum(values) / len(sets), float(low), float(high))


def permutation_test(
    sets: Sequence[ErrorCounts], others: Sequence[ErrorCounts], *, seed: int, permutations: int = 10_000
) -> float:
    """Two-sided p value of the macro error rates being equal: approximate randomisation over utterances.

    If two systems are alike, which of them said what is chance: their texts are swapped utterance by utterance by the
    toss of a coin, and p is the share of such swaps that lie at least as far apart as the systems do, the observed one
    counted (Noreen 1989). With one test set this is the difference of corpus WER itself; the references are shared, so
    a swap changes the edits alone. Utterances with equal edits change nothing and are left out.
    """
    weights = [
        (mine.total - other.total) / max(1, int(mine.units.sum())) for mine, other in zip(sets, others, strict=True)
    ]
    apart = np.concatenate(weights)
    apart = apart[apart != 0]
    draw = np.random.default_rng(seed)
    swapped = [
        (2.0 * draw.integers(0, 2, (min(500, permutations - done), len(apart))) - 1) @ apart
        for done in range(0, permutations, 500)
    ]
    # Sums of the same floats in another order differ in their last bits, also those that should be zero.
    far = np.abs(np.concatenate(swapped)) >= abs(apart.sum()) - 1e-9 * np.abs(apart).sum()
    return float(1 + far.sum()) / (1 + permutations)


def error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Corpus WER of normalised texts, in percent."""
    return count_errors(references, hypotheses).rate


def compression_ratio(text: str) -> float:
    """Length over zlib-compressed length, as Whisper measures repetition; 0 for an empty text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0
