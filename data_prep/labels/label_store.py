"""Storage of labels: Parquet shards with one row per utterance, readable by `datasets.load_dataset("parquet", ...)`.

While labelling runs, every batch is written atomically to a file of its own below parts/, so that a killed run loses at
most the batches in flight. Once all batches are there, `merge_parts` turns them into shards of many rows.

Axes: N predicted tokens (text, timestamps, end of text), K stored logits per token.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipes.core.atomic_files import atomic_write

SCHEMA_VERSION = 2
"""Version 1 had a single audio path, no distribution, and the quality verdict in the row; it can no longer be read."""


@dataclass(frozen=True)
class TokenDistribution:
    """The teacher's distribution over the vocabulary at each predicted token, given the tokens before it.

    Of the logits z, the K largest are stored and, of all others, log(sum(exp(z / T))). That suffices for an exact
    softmax at temperature T in which all other tokens share one bucket. If K is the size of the vocabulary, there are
    no others and the tail is -inf.
    """

    ids_NK: np.ndarray
    """Token ids of the K largest logits, in descending order of the logit, int32."""
    logits_NK: np.ndarray
    """The K largest logits before any token was suppressed, float32."""
    tail_N: np.ndarray
    """Log-sum-exp of all other logits / T, float32. Stored in the column `rest`."""


@dataclass(frozen=True)
class Decoding:
    """One transcript of an utterance by the teacher, without or with timestamps."""

    text: str
    """Text without special tokens; a timestamp is written as `<|0.00|>`."""
    tokens: list[int]
    """Prompt, text and end of text: the sequence that the student is trained on."""
    prompt_length: int
    """Number of leading tokens that are given, not predicted; the loss ignores them."""
    mean_logprob: float
    """Mean natural-log probability of the predicted tokens, before any token was suppressed."""
    temperature: float
    """0 for greedy decoding; the sampling temperature if the greedy text was degenerate."""
    ended: bool
    """Whether the teacher predicted the end of text before it reached its maximum length."""
    distribution: TokenDistribution | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Label:
    """One row of labels/labels-NNNNN.parquet."""

    id: str
    """Id of the utterance in the corpus table."""
    source: str
    split: str
    audio: list[str]
    """References to the audio, to be concatenated (`eval.audio.recordings`)."""
    seconds: float
    parts: list[str]
    """Ids of the utterances that were packed into this one."""
    part_seconds: list[float]
    """Length of each part; a part starts where the one before it ends."""
    speaker: str | None
    language: str | None
    """Language code of the prompt."""
    reference: str | None
    """The source's own transcript, if it has one."""
    plain: Decoding
    """Transcript without timestamps."""
    timed: Decoding | None = None
    """Transcript with timestamps, if `labels.timestamps` asks for it."""
    no_speech_prob: float = 0.0
    """Probability of the no-speech token at the start of the transcript."""
    error: str | None = None
    """Reason why the utterance could not be labelled, such as a missing audio file; the text is then empty."""

    @property
    def text(self) -> str:
        """The transcript without timestamps."""
        return self.plain.text


_DECODINGS = ("plain", "timed")


def label_schema(temperature: float = 2.0) -> pa.Schema:
    """Return the Parquet schema; its metadata holds the schema version and the temperature of the stored tails."""
    text, number, texts = pa.string(), pa.float64(), pa.list_(pa.string())
    decoding = pa.struct(
        [("text", text), ("tokens", pa.list_(pa.int32())), ("prompt_length", pa.int32()), ("mean_logprob", number),
         ("temperature", number), ("ended", pa.bool_()), ("top_ids", pa.list_(pa.int32())),
         ("top_logits", pa.list_(pa.float32())), ("rest", pa.list_(pa.float32()))]
    )  # fmt: skip
    columns = [
        ("id", text), ("source", text), ("split", text), ("audio", texts), ("seconds", number), ("parts", texts),
        ("part_seconds", pa.list_(number)), ("speaker", text), ("language", text), ("reference", text),
        ("plain", decoding), ("timed", decoding), ("no_speech_prob", number), ("error", text),
    ]  # fmt: skip
    metadata = {"sottovoce.label_schema": str(SCHEMA_VERSION), "sottovoce.temperature": str(temperature)}
    return pa.schema(columns, metadata=metadata)


def write_part(folder: Path, number: int, labels: Sequence[Label], temperature: float = 2.0) -> None:
    """Write the labels of batch `number` to parts/part-NNNNNNN.parquet.

    `temperature` is the one at which the tails of the stored distributions were summed.
    """
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    table = pa.Table.from_pylist([_label_to_row(label) for label in labels], label_schema(temperature))
    with atomic_write(parts / f"part-{number:07d}.parquet") as temporary:
        pq.write_table(table, temporary)


def finished_parts(folder: Path) -> set[int]:
    """Return the numbers of the batches that have been written; remove what an interrupted write has left behind."""
    for leftover in folder.glob("parts/.part-*"):
        leftover.unlink(missing_ok=True)
    return {int(file.stem.removeprefix("part-")) for file in folder.glob("parts/part-*.parquet")}


def merge_parts(folder: Path, count: int, shard_rows: int) -> None:
    """Merge the parts, in the order of their numbers, into shards labels-NNNNN.parquet.

    Batches are slices of one sorted list, so the result does not depend on the batch size, the number of processes or
    interruptions. Only one shard is in memory at a time. The parts are removed after all shards have been written, so
    an interrupted merge can be repeated.

    Args:
        folder: Folder of the label set.
        count: Number of utterances; the merge fails if it does not find exactly one label for each.
        shard_rows: Number of rows of a shard.
    """
    if shards_complete(folder, count):
        shutil.rmtree(folder / "parts", ignore_errors=True)
        return
    seen: set[str] = set()
    pending, shard = label_schema().empty_table(), 0
    files: list[Path | None] = [*sorted(folder.glob("parts/part-*.parquet")), None]
    for file in files:  # the None at the end writes the last, smaller shard
        if file is not None:
            part = pq.read_table(file)
            ids = part["id"].to_pylist()
            assert len(seen.union(ids)) == len(seen) + len(ids), f"{file}: holds a second label of an utterance"
            seen.update(ids)
            pending = pa.concat_tables([pending, part]) if pending.num_rows else part
        while pending.num_rows >= shard_rows or (file is None and pending.num_rows):
            with atomic_write(folder / f"labels-{shard:05d}.parquet") as temporary:
                pq.write_table(pending.slice(0, shard_rows).combine_chunks(), temporary)
            pending, shard = pending.slice(shard_rows), shard + 1
    assert len(seen) == count, f"{folder}: expected {count} labels, found {len(seen)}"
    shutil.rmtree(folder / "parts", ignore_errors=True)


def shards_complete(folder: Path, count: int) -> bool:
    """Return whether the shards in `folder` hold `count` rows, that is, all of a label set."""
    return count > 0 and sum(pq.read_metadata(file).num_rows for file in shard_files(folder)) == count


def shard_files(folder: Path) -> list[Path]:
    """Return the shards of a finished label set, in order."""
    return sorted(folder.glob("labels-*.parquet"))


def read_labels(folder: Path, *, distributions: bool = False) -> list[Label]:
    """Read all labels of a finished label set, with the stored logits only if `distributions` is set."""
    return [label for file in shard_files(folder) for label in _read_shard(file, distributions)]


def _read_shard(file: Path, distributions: bool) -> Iterator[Label]:
    columns = [item.name for item in fields(Label) if item.name not in _DECODINGS]
    members = [item.name for item in fields(Decoding) if item.name != "distribution"]
    members += ["top_ids", "top_logits", "rest"] if distributions else []
    columns += [f"{name}.{member}" for name in _DECODINGS for member in members]
    for row in pq.ParquetFile(file).read(columns).to_pylist():
        values: dict[str, Any] = {key: _row_to_decoding(row[key]) if key in _DECODINGS else row[key] for key in row}
        yield Label(**values)


def _label_to_row(label: Label) -> dict[str, Any]:
    return {
        key: _decoding_to_row(value) if isinstance(value, Decoding) else value for key, value in vars(label).items()
    }


def _decoding_to_row(decoding: Decoding) -> dict[str, Any]:
    row = {key: value for key, value in vars(decoding).items() if key != "distribution"}
    if (stored := decoding.distribution) is not None:
        row |= {"top_ids": stored.ids_NK.ravel(), "top_logits": stored.logits_NK.ravel(), "rest": stored.tail_N}
    return row


def _row_to_decoding(row: dict[str, Any] | None) -> Decoding | None:
    if row is None or row["tokens"] is None:
        return None
    ids, logits, tail = (row.pop(name, None) for name in ("top_ids", "top_logits", "rest"))
    distribution = None
    if tail is not None:
        shape = (len(tail), -1)
        distribution = TokenDistribution(
            np.array(ids, np.int32).reshape(shape), np.array(logits, np.float32).reshape(shape),
            np.array(tail, np.float32),
        )  # fmt: skip
    return Decoding(**row, distribution=distribution)
