"""Which columns the metadata of an audiofolder has, and whether the corpus stage is going to read it."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.audio.audiofolder import read_metadata
from recipes.core.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")

TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "normalized_text")
"""Names under which published data sets keep transcripts; the first that the metadata has is taken."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def metadata_file(folder: Path) -> Path | None:
    """Return the metadata file that is read in a folder, None without one."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def text_column(folders: Sequence[Path]) -> tuple[str | None, list[str]]:
    """Return the column that holds the transcripts, None without one, and all columns, over folders with metadata.

    Raises UserError where a metadata file cannot be used, or where rows lack the column.
    """
    columns: dict[str, None] = {}
    for folder in folders:
        empty = True
        for _, row in _rows(folder):
            empty = False
            columns |= dict.fromkeys(name for name in row if name is not None)
        if empty:
            raise UserError(
                f"--audio: expected rows in {metadata_file(folder)}, found none; add them or remove the file"
            )
    column = next((name for name in TEXT_COLUMNS if name in columns), None)
    if column not in (None, "text"):  # text is optional, a column that a recipe names is not
        for folder in folders:
            for number, row in _rows(folder):
                if column not in row:
                    raise UserError(
                        f"--audio: expected a {column} in row {number} of {metadata_file(folder)}, as in other rows, "
                        "found none; write null or an empty text for recordings without a transcript"
                    )
    return column, list(columns)


def _rows(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the columns of each row. Raises UserError where the corpus stage could not read it."""
    file = metadata_file(folder)
    assert file is not None
    with file.open("rb") as start:
        if start.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
            raise UserError(f"--audio: expected plain UTF-8 in {file}, found a byte order mark; save it without one")
    try:
        for number, (name, row) in enumerate(read_metadata(folder, "--audio"), 1):
            if not isinstance(name, str):
                raise UserError(
                    f"--audio: expected a text as file_name in row {number} of {file}, found {name!r:.40}; quote it"
                )
            yield number, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--audio: expected UTF-8 in {file}, found {error}; save the file as UTF-8") from error
