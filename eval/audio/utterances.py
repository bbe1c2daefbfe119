"""The table of utterances, `corpus/utterances.parquet`: written by the corpus stage, read by all later stages."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Utterance:
    """One row of the table: a clip of audio with what its source says about it."""

    id: str
    """`SOURCE/SPLIT/file name`; a part of a long recording adds `#t=start,end`. A packed utterance takes the id of its
    first part."""
    source: str
    """Name of the source. Each source has its own test set."""
    split: str
    """`train`, `validation` or `test`."""
    audio: list[str]
    """References to the audio (see `eval.audio.recordings`), to be concatenated; more than one in packed utterances."""
    seconds: float
    text: str | None
    """Reference transcript; None if the source has none."""
    speaker: str | None
    language: str | None
    """Language code; None if the source gives none."""
    parts: list[str]
    """Ids of the utterances packed into this one, in order; only its own id if it is not packed."""
    part_seconds: list[float]
    """Length of each part in seconds. Part i starts at the sum of the lengths before it."""
    sha256: str
    """Hash of the decoded samples (16 kHz, mono, float32)."""

    @staticmethod
    def schema() -> pa.Schema:
        """Return the Parquet schema of the table."""
        text, seconds = pa.string(), pa.float64()
        return pa.schema(
            [("id", text), ("source", text), ("split", text), ("audio", pa.list_(text)), ("seconds", seconds),
             ("text", text), ("speaker", text), ("language", text), ("parts", pa.list_(text)),
             ("part_seconds", pa.list_(seconds)), ("sha256", text)]
        )  # fmt: skip


def read_utterances(corpus: Path, *splits: str) -> list[Utterance]:
    """Return the utterances of the given splits from the folder of a finished corpus stage, in the table's order."""
    rows = pq.read_table(corpus / "utterances.parquet").to_pylist()
    return [Utterance(**row) for row in rows if row["split"] in splits]
