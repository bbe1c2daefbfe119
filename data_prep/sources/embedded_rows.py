"""Copy audio that is embedded in the rows of a Hub data set or of Parquet files into tar shards, as it is encoded.

The copy is needed because later stages read clips in order of length, not of rows, and because a stream can be read
only once. A shard holds the audio files of `ROWS` rows and has an index, NNNNN.jsonl, that is written last, so that an
interrupted copy continues after the last complete shard. Any tar program can open the shards.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eval.audio.recordings import AudioReference
from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError
from recipes.core.progress import track
from recipes.schema.corpus_section import AudioSource

ROWS = 1000
"""Rows in one shard."""

_SUFFIX_BY_MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff\xfb": ".mp3"}
"""File suffix by the first bytes of encoded audio."""

_TAR_BLOCK = 512
"""A tar archive pads every file to a multiple of this many bytes."""


@dataclass(frozen=True)
class EmbeddedRow:
    """A row whose audio has been copied; one line of a shard's index."""

    name: str
    audio: str
    """Reference to the copied audio; the path in the row if the audio was not embedded; empty if there is none."""
    values: dict[str, Any]
    """The other columns, if they are text, numbers or booleans."""


def copy_embedded_audio(source: AudioSource, folder: Path) -> Iterator[EmbeddedRow]:
    """Yield every row of a Hub or Parquet source, after copying its audio into shards in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = sorted(folder.glob("[0-9]*.jsonl"))
    for index in finished:
        yield from _read_index(index)
    number, skip = len(finished), len(finished) * ROWS
    rows = track(_load_rows(source, skip), f"copy {source.label}", unit="row", initial=skip)
    while chunk := list(islice(rows, ROWS)):
        yield from _read_index(_write_shard(folder, number, chunk, source.columns.audio))
        number += 1


def _load_rows(source: AudioSource, skip: int) -> Iterable[dict[str, Any]]:
    """Return the rows from number `skip` on, with their audio still encoded.

    Raises UserError when `datasets` cannot read the source.
    """
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
    except (OSError, ValueError) as error:  # all errors of `datasets` and of the Hub derive from one of these
        raise UserError(
            f"corpus.sources.{'hub' if source.hub else 'parquet'} {source.label}: datasets cannot read it: "
            f"{str(error).splitlines()[0]}; check name, config, split, the network and the access token"
        ) from error


def _write_shard(folder: Path, number: int, rows: list[dict[str, Any]], audio_column: str) -> Path:
    """Write the audio of the rows to NNNNN.tar, then the index NNNNN.jsonl; return the index."""
    lines = []
    tar_path, index = folder / f"{number:05d}.tar", folder / f"{number:05d}.jsonl"
    with atomic_write(tar_path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for position, row in enumerate(rows):
            if audio_column not in row:
                raise UserError(
                    f"corpus.sources.columns.audio: expected a column {audio_column}, found {', '.join(row)}; correct "
                    "the name"
                )
            audio = row[audio_column] if isinstance(row[audio_column], dict) else {"path": row[audio_column]}
            data, path = audio.get("bytes"), str(audio.get("path") or "")
            name = f"{number * ROWS + position:08d}{_audio_suffix(data, path)}"
            reference = path if not data else ""
            if data:
                tar.addfile(_tar_header(name, len(data)), io.BytesIO(data))
                # `tar.offset` is the end of the padded file.
                start = tar.offset - (len(data) + _TAR_BLOCK - 1) // _TAR_BLOCK * _TAR_BLOCK
                reference = str(AudioReference(tar_path, byte_range=(start, len(data))))
            values = {key: value for key, value in row.items() if isinstance(value, str | int | float | bool | None)}
            lines.append({"name": name, "audio": reference, "values": values})
    with atomic_write(index) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return index


def _read_index(index: Path) -> Iterator[EmbeddedRow]:
    with index.open() as lines:
        for line in lines:
            yield EmbeddedRow(**json.loads(line))


def _tar_header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header


def _audio_suffix(data: bytes | None, path: str) -> str:
    """Return the suffix of the path in the row or, without one, the suffix of the format that the data begins with."""
    if suffix := Path(path).suffix:
        return suffix.lower()
    return next((suffix for magic, suffix in _SUFFIX_BY_MAGIC.items() if (data or b"").startswith(magic)), "")
