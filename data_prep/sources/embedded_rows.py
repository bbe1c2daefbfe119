"""Recordings inside rows, of a Hub data set or of Parquet: copied as they are encoded into tar shards.

Later stages read clips by length, not by row, and a stream cannot be read twice. A shard is ROWS files and an index
NNNNN.jsonl, written last: a killed run goes on after the last whole shard. Any tar program opens them.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.audio.recordings import AudioReference
from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError
from recipes.schema.corpus_section import AudioSource

ROWS = 1000
_MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff\xfb": ".mp3"}


@dataclass(frozen=True)
class EmbeddedRow:
    """One row: where its audio went, and its other columns as far as they are text or numbers."""

    name: str
    audio: str
    values: dict[str, Any]


def copy_embedded_audio(source: AudioSource, folder: Path) -> Iterator[EmbeddedRow]:
    """Every row of a Hub or Parquet source, its audio in shards below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    done = sorted(folder.glob("[0-9]*.jsonl"))
    for index in done:
        yield from _read(index)
    rows = iter(tqdm(_rows(source, len(done) * ROWS), f"copy {source.label}", unit="row", initial=len(done) * ROWS))
    number = len(done)
    while chunk := list(islice(rows, ROWS)):
        _write(folder, number, chunk, source.columns.audio)
        yield from _read(folder / f"{number:05d}.jsonl")
        number += 1


def _rows(source: AudioSource, skip: int) -> Iterable[dict[str, Any]]:
    """Rows from number `skip` on, the audio still encoded. UserError where `datasets` finds none."""
    from datasets import load_dataset

    try:
        if source.parquet is not None:
            files = sorted(source.parquet.rglob("*.parquet")) if source.parquet.is_dir() else [source.parquet]
            if not files or not files[0].is_file():
                raise UserError(
                    f"corpus.sources.parquet: expected Parquet files at {source.parquet}, found none; correct the path"
                )
            data = load_dataset("parquet", data_files=[str(file) for file in files], split="train", streaming=True)
        else:
            hub = source.hub
            assert hub is not None
            data = load_dataset(
                hub.dataset, hub.config, split=hub.split, revision=hub.revision, streaming=hub.streaming
            )
            data = data if hub.streaming else data.to_iterable_dataset()
        return data.decode(False).skip(skip)
    except (OSError, ValueError) as error:  # all of the Hub's and datasets' own errors are one of these
        raise UserError(
            f"corpus.sources.{'hub' if source.hub else 'parquet'} {source.label}: datasets cannot read it: "
            f"{str(error).splitlines()[0]}; check name, config, split, the network and the access token"
        ) from error


def _write(folder: Path, number: int, rows: list[dict[str, Any]], column: str) -> None:
    index = []
    tar_path = folder / f"{number:05d}.tar"
    with atomic_write(tar_path) as beside, tarfile.open(beside, "w", format=tarfile.USTAR_FORMAT) as tar:
        for position, row in enumerate(rows):
            if column not in row:
                raise UserError(f"corpus.sources.columns.audio: expected a column {column}, found {', '.join(row)}")
            audio = row[column] if isinstance(row[column], dict) else {"path": row[column]}
            data, path = audio.get("bytes"), str(audio.get("path") or "")
            name = f"{number * ROWS + position:08d}{_suffix(data, path)}"
            reference = path if not data else ""
            if data:
                tar.addfile(_info(name, len(data)), io.BytesIO(data))
                # The tar's own position is after the padding to 512 bytes.
                start = tar.offset - (len(data) + 511) // 512 * 512
                reference = str(AudioReference(tar_path, bytes=(start, len(data))))
            values = {key: value for key, value in row.items() if isinstance(value, str | int | float | bool | None)}
            index.append({"name": name, "audio": reference, "values": values})
    with atomic_write(folder / f"{number:05d}.jsonl") as beside:
        beside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in index))


def _read(index: Path) -> Iterator[EmbeddedRow]:
    for line in index.read_text().splitlines():
        yield EmbeddedRow(**json.loads(line))


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


def _suffix(data: bytes | None, path: str) -> str:
    if suffix := Path(path).suffix:
        return suffix.lower()
    return next((suffix for magic, suffix in _MAGIC.items() if (data or b"").startswith(magic)), "")
