"""TODO: recipes.core.atomic_files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, renamed to it when the body ends well: a reader never sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """JSON, written beside and renamed."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
