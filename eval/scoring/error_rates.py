"""Word and character error rates over a whole corpus, counted by jiwer, and Whisper's text normalisers."""

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
    """Return one of Whisper's text normalisers; `english` reads its spelling table from normalizer.json in `model`.

    Raises UserError if the model folder has no such file.
    """
    if name == "none":
        return str.strip
    if name == "basic":
        basic = BasicTextNormalizer()
        return lambda text: basic(text).strip()
    spellings = model / "normalizer.json"
    if not spellings.is_file():
        raise UserError(
            f"{spellings}: expected the spelling table of the english normaliser, found no file; "
            "copy it from the teacher, or set the normalizer to basic"
        )
    english = EnglishTextNormalizer(json.loads(spellings.read_text()))
    return lambda text: english(text).strip()


@dataclass(frozen=True)
class ErrorCounts:
    """Edits that turn references into hypotheses, counted for each of U utterances in words or in characters."""

    substitutions: np.ndarray
    """Substitutions [U]."""
    deletions: np.ndarray
    """Deletions [U]."""
    insertions: np.ndarray
    """Insertions [U]."""
    units: np.ndarray
    """Words or characters of the references [U]."""

    @property
    def total(self) -> np.ndarray:
        """All edits of each utterance [U]."""
        return self.substitutions + self.deletions + self.insertions

    def take(self, indices: Sequence[int]) -> "ErrorCounts":
        """Return the counts of some of the utterances."""
        return ErrorCounts(*(counts[list(indices)] for counts in astuple(self)))

    @property
    def rate(self) -> float:
        """Edits per reference unit of the whole corpus, in percent."""
        return 100.0 * float(self.total.sum()) / max(1, int(self.units.sum()))


def count_errors(references: Sequence[str], hypotheses: Sequence[str], *, characters: bool = False) -> ErrorCounts:
    """Count the edits of normalised texts, in words or in characters.

    Every word (or character) of a hypothesis whose reference is empty counts as an insertion.
    """
    process = jiwer.process_characters if characters else jiwer.process_words
    rows = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        if not reference:  # jiwer raises ValueError for empty references
            insertions = len(hypothesis) if characters else len(hypothesis.split())
            rows.append((0, 0, insertions, 0))
            continue
        output = process(reference, hypothesis)
        units = output.hits + output.substitutions + output.deletions
        rows.append((output.substitutions, output.deletions, output.insertions, units))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return ErrorCounts(*columns)


def error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the corpus WER of normalised texts, in percent."""
    return count_errors(references, hypotheses).rate


def compression_ratio(text: str) -> float:
    """Return the length of `text` over its zlib-compressed length, Whisper's measure of repetition.

    0 for an empty text.
    """
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0
