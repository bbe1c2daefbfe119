"""Write one Markdown page per stage from the docstrings of the stages and of the recipe's schema.

python -m recipes.engine.docs docs/stages
"""

import ast
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError, run_main
from recipes.engine.flow import STAGES, Stage
from recipes.schema.recipe import Recipe

_OTHER_SECTIONS = {"budget": "report", "teacher": "labels"}
"""Recipe sections without a stage of the same name, and the stage on whose page they are described."""

_TYPE_NAMES = {bool: "true or false", int: "integer", float: "number", str: "string", Path: "path"}
_COUNTABLE = ("integer", "number", "string", "path", "section")


def pages() -> dict[str, str]:
    """Return the Markdown text of every page by file name: an index and one page per stage."""
    rows = [f"| [{stage.name}]({stage.name}.md) | {_summary(stage)} |" for stage in STAGES]
    index = [
        "# The stages", "", "In the order in which `sottovoce run` runs them. A stage with a null section is left out.",
        "", "| Stage | What it does |", "|---|---|", *rows,
    ]  # fmt: skip
    return {"README.md": "\n".join(index) + "\n"} | {f"{stage.name}.md": page(stage) for stage in STAGES}


def page(stage: Stage) -> str:
    """Return the page of a stage: what it does, its command, its inputs, and the options of its recipe sections."""
    lines = [f"# {stage.name}", "", _summary(stage), ""]
    lines += ["```", f"{stage.command} RECIPE [section.key=value ...]", "```", ""]
    if stage.inputs:
        links = ", ".join(f"[{name}]({name}.md)" for name in stage.inputs)
        lines += [f"Input: the output of {links}, as far as the recipe has these stages.", ""]
    lines.append(
        f"Output: `runs/NAME/{stage.name}/`. `sottovoce run` runs the stage again when one of its options or inputs "
        "changes."
    )
    sections = [stage.name, *(name for name, owner in _OTHER_SECTIONS.items() if owner == stage.name)]
    for name in sections:
        if (field := Recipe.model_fields.get(name)) is not None:  # there is no section `report`
            lines += [line for model in _models(field.annotation) for line in section_lines(name, model)]
    return "\n".join(lines) + "\n"


def section_lines(key: str, model: type[BaseModel]) -> list[str]:
    """Return the lines of a section: heading, description and a table of options, then the sections inside it."""
    rows = [
        f"| `{name}` | {_value_type(field.annotation)} | {_default(field)} | {_description(field)} |"
        for name, field in model.model_fields.items()
    ]
    description = " ".join((model.__doc__ or "").split())
    lines = ["", f"## {key}", "", description, ""]
    lines += ["| Option | Value | Default | Description |", "|---|---|---|---|", *rows]
    for name, field in model.model_fields.items():
        lines += [line for nested in _models(field.annotation) for line in section_lines(f"{key}.{name}", nested)]
    return lines


def _summary(stage: Stage) -> str:
    """Return what a stage does, in one sentence or more.

    This is the first paragraph of the docstring of its file, after "Stage `NAME`: ". A file that runs two stages names
    only one of them there; the other one is described by the first sentence of its section's docstring.
    """
    docstring = ast.get_docstring(ast.parse(stage.file.read_text())) or ""
    prefix, _, summary = " ".join(docstring.split("\n\n")[0].split()).partition(": ")
    if prefix != f"Stage `{stage.name}`":
        section = next(_models(Recipe.model_fields[stage.name].annotation))
        summary = (section.__doc__ or "").partition(". ")[0] + "."
    return summary[:1].upper() + summary[1:]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the section classes inside an annotation such as `list[AudioSource]` or `NoiseOptions | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _value_type(annotation: Any) -> str:
    """Return the type of an option in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_value_type(part) for part in parts)
    if origin is not None and origin.__name__ == "Annotated":
        return _value_type(parts[0])
    if origin in (list, tuple):
        return "list of " + " and ".join(dict.fromkeys(_plural(_value_type(part)) for part in parts))
    if origin is dict:
        return f"{_value_type(parts[1])} by name"
    if annotation is type(None):
        return "null"
    if list(_models(annotation)):
        return "section"
    return _TYPE_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plural(value_type: str) -> str:
    return " or ".join(f"{name}s" if name in _COUNTABLE else name for name in value_type.split(" or "))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "as below"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _description(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", r"\|")


def main() -> None:
    """Write every page into the folder that the command line names."""
    if len(sys.argv) != 2:
        raise UserError("recipes.engine.docs: expected a folder, such as docs/stages")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    run_main(main)
