"""Read JSON files into dataclasses: every field is checked against its annotation."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from recipes.core.errors import UserError

T = TypeVar("T")


def read_json(kind: type[T], file: Path) -> T:
    """Read `file` into the dataclass `kind`.

    Raises UserError if the file is not JSON, or if a field is missing or of another type.
    """
    try:
        value = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: expected JSON, found {error}; run the stage that writes it again") from error
    return parse_json(kind, value, str(file))


def parse_json(kind: type[T], value: Any, where: str) -> T:
    """Convert parsed JSON to the dataclass `kind`, nested dataclasses included; unknown keys are ignored.

    Raises UserError, which names `where` and the first wrong field, if `value` does not have the fields of `kind`.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{where}: {field}: {problem['msg']}; the file may come from another version of sottovoce, "
            "run the stage that writes it again"
        ) from error
