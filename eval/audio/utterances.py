"""The corpus table that every later stage reads."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Utterance:
    """One row of corpus/utterances.parquet."""

    id: str
    """`SOURCE/SPLIT/file name`, with `#t=start,end` for a part of a long recording; of its first part where packed."""
    source: str
    """The source's name: each has its own test set."""
    split: str
    """train, validation or test."""
    audio: list[str]
    """References to the audio (`eval.audio`), one after the other; more than one where packed."""
    seconds: float
    text: str | None
    """Reference transcript, where the source has one."""
    speaker: str | None
    language: str | None
    """Language code, where the source gives one."""
    parts: list[str]
    """Ids of what was packed here, in order; the utterance's own where nothing was."""
    part_seconds: list[float]
    """Length of each part: part i starts at the sum of those before it."""
    sha256: str
    """Of the decoded 16 kHz mono float32 samples."""

    @staticmethod
    def schema() -> pa.Schema:
        """The Parquet schema."""
        text, seconds = pa.string(), pa.float64()
        return pa.schema(
            [("id", text), ("source", text), ("split", text), ("audio", pa.list_(text)), ("seconds", seconds),
             ("text", text), ("speaker", text), ("language", text), ("parts", pa.list_(text)),
             ("part_seconds", pa.list_(seconds)), ("sha256", text)]
        )  # fmt: skip


def read_utterances(corpus: Path, *splits: str) -> list[Utterance]:
    """The utterances of these splits from a finished corpus stage, in corpus order."""
    rows = pq.read_table(corpus / "utterances.parquet").to_pylist()
    return [Utterance(**row) for row in rows if row["split"] in splits]
