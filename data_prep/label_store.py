"""Label shards: Parquet files of one row an utterance, readable by `datasets.load_dataset("parquet", ...)`.

While the teacher works, each batch is a file of its own under parts/, written beside and renamed: a killed run
loses at most the batch in flight. When all are there they become shards of many rows.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Label:
    """One row of labels/labels-NNNNN.parquet."""

    id: str
    """Utterance id of the corpus table."""
    split: str
    audio: str
    seconds: float
    reference: str | None
    """The source's own transcript, if any."""
    text: str
    """The teacher's transcript."""
    tokens: list[int]
    """Prompt, text tokens, end of text: what the student learns to write."""
    prompt_length: int
    """Leading tokens that are given, not predicted; masked in the loss."""
    mean_logprob: float
    """Mean natural-log probability of the teacher's tokens."""
    wer: float | None
    """Normalised WER of text against reference, a fraction."""
    kept: bool
    """Whether training uses it."""
    reason: str | None
    """Why not."""


def schema() -> pa.Schema:
    """The Parquet schema, with its version in the metadata."""
    text = pa.string()
    fields = [
        ("id", text), ("split", text), ("audio", text), ("seconds", pa.float64()), ("reference", text), ("text", text),
        ("tokens", pa.list_(pa.int32())), ("prompt_length", pa.int32()), ("mean_logprob", pa.float64()),
        ("wer", pa.float64()), ("kept", pa.bool_()), ("reason", text),
    ]  # fmt: skip
    return pa.schema(fields, metadata={"sottovoce.label_schema": str(SCHEMA_VERSION)})


def write_part(folder: Path, number: int, labels: Sequence[Label]) -> None:
    """One batch's labels as parts/part-NUMBER.parquet."""
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    _write(parts / f"part-{number:07d}.parquet", labels)


def finished_parts(folder: Path) -> set[int]:
    """Numbers of the batches that are already there; leftovers of a killed write are removed."""
    for leftover in folder.glob("parts/.part-*"):
        leftover.unlink(missing_ok=True)
    return {int(file.stem.removeprefix("part-")) for file in folder.glob("parts/part-*.parquet")}


def merge_parts(folder: Path, order: Sequence[str], shard_rows: int) -> list[Label]:
    """Turn parts into labels-NNNNN.parquet in the order of these ids; all labels are returned.

    The result does not depend on batch size, process count or interruptions.
    """
    files = sorted(folder.glob("parts/part-*.parquet"))
    labels = {label.id: label for file in files for label in _read(file)}
    assert labels.keys() == set(order), f"{len(set(order) ^ labels.keys())} utterances without exactly one label"
    ordered = [labels[name] for name in order]
    for number, start in enumerate(range(0, len(ordered), shard_rows)):
        _write(folder / f"labels-{number:05d}.parquet", ordered[start : start + shard_rows])
    for file in files:
        file.unlink()
    (folder / "parts").rmdir()
    return ordered


def read_labels(folder: Path) -> list[Label]:
    """All rows of a finished label stage."""
    return [label for file in sorted(folder.glob("labels-*.parquet")) for label in _read(file)]


def _read(file: Path) -> list[Label]:
    return [Label(**row) for row in pq.read_table(file).to_pylist()]


def _write(file: Path, labels: Sequence[Label]) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(pa.Table.from_pylist([vars(label) for label in labels], schema=schema()), beside)
    beside.replace(file)
