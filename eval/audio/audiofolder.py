"""Folders of audio with a metadata file, in the `audiofolder` layout of the Hugging Face `datasets` library."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from recipes.core.errors import UserError


def read_metadata(folder: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the file name and all columns of each row of `metadata.jsonl`, or of `metadata.csv` where that is missing.

    `key` is the dotted recipe key that names the folder; error messages quote it. Raises UserError if neither file
    exists, a line is not JSON, or a row has no `file_name`.
    """
    for name in ("metadata.jsonl", "metadata.csv"):
        if (file := folder / name).is_file():
            break
    else:
        raise UserError(
            f"{key} {folder}: expected metadata.jsonl or metadata.csv, found neither; "
            "for audio without transcripts write `audio:` instead"
        )
    with file.open(newline="", encoding="utf-8") as lines:
        rows: Iterable[Any] = csv.DictReader(lines) if name.endswith(".csv") else _json_lines(file, lines)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not row.get("file_name"):
                raise UserError(f"{file} row {number}: expected a file_name, found {row!r:.80}; add it")
            yield row["file_name"], row


def _json_lines(file: Path, lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{file} line {number}: expected a JSON object, found {line.strip()!r:.60}; correct the line"
                ) from error
