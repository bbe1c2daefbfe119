"""The corpus table that every later stage reads."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Utterance:
    """One row of corpus/utterances.parquet."""

    id: str
    """`SOURCE/SPLIT/file name`."""
    source: str
    """The source's name: each has its own test set."""
    split: str
    """train, validation or test."""
    audio: str
    """Path of the recording: as the recipe gives it, or below the corpus stage's folder for synthetic audio."""
    seconds: float
    text: str | None
    """Reference transcript, where the source has one."""
    speaker: str | None
    sha256: str
    """Of the decoded 16 kHz mono float32 samples."""

    @staticmethod
    def schema() -> pa.Schema:
        """The Parquet schema."""
        text = pa.string()
        return pa.schema(
            [("id", text), ("source", text), ("split", text), ("audio", text), ("seconds", pa.float64()),
             ("text", text), ("speaker", text), ("sha256", text)]
        )  # fmt: skip


def read_utterances(corpus: Path, *splits: str) -> list[Utterance]:
    """The utterances of these splits from a finished corpus stage, in corpus order."""
    rows = pq.read_table(corpus / "utterances.parquet").to_pylist()
    return [Utterance(**row) for row in rows if row["split"] in splits]
