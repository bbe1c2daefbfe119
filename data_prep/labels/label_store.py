"""Label shards: Parquet files of one row an utterance, readable by `datasets.load_dataset("parquet", ...)`.

While the teacher works, each batch is a file of its own under parts/, written beside and renamed: a killed run
loses at most the batch in flight. When all are there they become shards of many rows.

N predicted tokens (text, timestamps, end of text), K kept logits a token.
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
"""1 had one audio path, no distribution and the verdict in the row; it is not read any more."""


@dataclass(frozen=True)
class TokenDistribution:
    """The teacher over the vocabulary at each predicted token, given the tokens before.

    With logits z, the K largest are kept, and of the others log(sum(exp(z / T))): enough for an exact softmax at
    temperature T in which all others share one bucket. At K = vocabulary there are no others and `rest` is -inf.
    """

    ids_NK: np.ndarray
    """int32, by falling logit."""
    logits_NK: np.ndarray
    """float32; raw, before any token was suppressed."""
    rest_N: np.ndarray
    """float32 log-sum-exp of the other logits / T."""


@dataclass(frozen=True)
class Decoding:
    """One way the teacher wrote an utterance down: without timestamps, or with."""

    text: str
    """Without special tokens; `<|0.00|>` marks where there are timestamps."""
    tokens: list[int]
    """Prompt, text, end of text: what the student learns to write."""
    prompt_length: int
    """Leading tokens that are given, not predicted; masked in the loss."""
    mean_logprob: float
    """Mean natural-log probability of the predicted tokens, before suppression."""
    temperature: float
    """0 for greedy; a sampling temperature where the greedy text was degenerate."""
    ended: bool
    """Whether the teacher wrote the end of text before its length limit."""
    distribution: TokenDistribution | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Label:
    """One row of labels/labels-NNNNN.parquet."""

    id: str
    """Utterance id of the corpus table."""
    source: str
    split: str
    audio: list[str]
    """References to the audio, one after the other (`eval.audio`)."""
    seconds: float
    parts: list[str]
    part_seconds: list[float]
    """Ids and lengths in s of what was packed; part i starts at the sum of those before."""
    speaker: str | None
    language: str | None
    """Code of the prompt's language."""
    reference: str | None
    """The source's own transcript, if any."""
    plain: Decoding
    """Without timestamps."""
    timed: Decoding | None = None
    """With timestamps, where labels.timestamps asks for them."""
    no_speech_prob: float = 0.0
    """Probability of the no-speech token at the start of the transcript."""
    error: str | None = None
    """Why the teacher could not label it, such as audio that has vanished; its text is empty."""

    @property
    def text(self) -> str:
        """The teacher's transcript."""
        return self.plain.text


_DECODINGS = ("plain", "timed")


def label_schema(temperature: float = 2.0) -> pa.Schema:
    """The Parquet schema; version and tail temperature in the metadata."""
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
    """One batch's labels as parts/part-NUMBER.parquet."""
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    with atomic_write(parts / f"part-{number:07d}.parquet") as beside:
        pq.write_table(pa.Table.from_pylist([_row(label) for label in labels], label_schema(temperature)), beside)


def finished_parts(folder: Path) -> set[int]:
    """Numbers of the batches that are already there; leftovers of a killed write are removed."""
    for leftover in folder.glob("parts/.part-*"):
        leftover.unlink(missing_ok=True)
    return {int(file.stem.removeprefix("part-")) for file in folder.glob("parts/part-*.parquet")}


def merge_parts(folder: Path, count: int, shard_rows: int) -> None:
    """Turn the parts of `count` utterances into labels-NNNNN.parquet, in the order of their numbers.

    Batches are cut from one sorted list, so the result does not depend on batch size, process count or interruptions.
    One shard is in memory at a time. Parts are removed once all shards stand, so a merge that is killed is begun again.
    """
    if shards_complete(folder, count):
        shutil.rmtree(folder / "parts", ignore_errors=True)
        return
    files = sorted(folder.glob("parts/part-*.parquet"))
    seen: set[str] = set()
    rows, number = label_schema().empty_table(), 0
    for file in [*files, None]:
        if file is not None:
            part = pq.read_table(file)
            names = part["id"].to_pylist()
            assert len(seen.union(names)) == len(seen) + len(names), f"{file}: labelled twice"
            seen.update(names)
            rows = pa.concat_tables([rows, part]) if rows.num_rows else part
        while rows.num_rows >= shard_rows or (file is None and rows.num_rows):
            with atomic_write(folder / f"labels-{number:05d}.parquet") as beside:
                pq.write_table(rows.slice(0, shard_rows).combine_chunks(), beside)
            rows, number = rows.slice(shard_rows), number + 1
    assert len(seen) == count, f"{count} utterances, {len(seen)} labels"
    shutil.rmtree(folder / "parts", ignore_errors=True)


def shards_complete(folder: Path, count: int) -> bool:
    """Whether the shards of `count` utterances stand already."""
    return count > 0 and sum(pq.read_metadata(file).num_rows for file in shard_files(folder)) == count


def shard_files(folder: Path) -> list[Path]:
    """The shard files of a finished label set, in order."""
    return sorted(folder.glob("labels-*.parquet"))


def read_labels(folder: Path, *, distributions: bool = False) -> list[Label]:
    """All rows of a finished label set; the stored logits only when asked for."""
    return [label for file in shard_files(folder) for label in _read(file, distributions)]


def _read(file: Path, distributions: bool) -> Iterator[Label]:
    columns = [item.name for item in fields(Label) if item.name not in _DECODINGS]
    parts = [item.name for item in fields(Decoding) if item.name != "distribution"]
    parts += ["top_ids", "top_logits", "rest"] if distributions else []
    columns += [f"{name}.{part}" for name in _DECODINGS for part in parts]
    for row in pq.ParquetFile(file).read(columns).to_pylist():
        values: dict[str, Any] = {key: _decoding(row[key]) if key in _DECODINGS else row[key] for key in row}
        yield Label(**values)


def _row(label: Label) -> dict[str, Any]:
    return {key: _flat(value) if isinstance(value, Decoding) else value for key, value in vars(label).items()}


def _flat(decoding: Decoding) -> dict[str, Any]:
    row = {key: value for key, value in vars(decoding).items() if key != "distribution"}
    if (kept := decoding.distribution) is not None:
        row |= {"top_ids": kept.ids_NK.ravel(), "top_logits": kept.logits_NK.ravel(), "rest": kept.rest_N}
    return row


def _decoding(row: dict[str, Any] | None) -> Decoding | None:
    if row is None or row["tokens"] is None:
        return None
    ids, logits, rest = (row.pop(name, None) for name in ("top_ids", "top_logits", "rest"))
    distribution = None
    if rest is not None:
        shape = (len(rest), -1)
        distribution = TokenDistribution(
            np.array(ids, np.int32).reshape(shape), np.array(logits, np.float32).reshape(shape),
            np.array(rest, np.float32),
        )  # fmt: skip
    return Decoding(**row, distribution=distribution)
