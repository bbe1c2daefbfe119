"""One page a stage, from the schema's own docstrings: `python -m recipes.engine.docs docs/stages`."""

import ast
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError, run_main
from recipes.engine.flow import STAGES, Stage
from recipes.schema.recipe import Recipe

_HOME = Path(__file__).resolve().parent.parent.parent
_OTHERS = {"budget": "report", "teacher": "labels"}
"""Sections that are no stage of their own, and the stage on whose page they stand."""


def pages() -> dict[str, str]:
    """Markdown by file name, an index and one page for each stage."""
    made = {f"{spec.name}.md": page(spec) for spec in STAGES}
    rows = [f"| [{spec.name}]({spec.name}.md) | {_opening(spec).splitlines()[0]} |" for spec in STAGES]
    index = ["# The stages", "", "In the order in which `sottovoce run` runs them.", "", "| | |", "|---|---|", *rows]
    return {"README.md": "\n".join(index) + "\n", **made}


def page(spec: Stage) -> str:
    """What the stage does, how it is run by itself, what it reads, and every option of its sections."""
    lines = [f"# {spec.name}", "", _opening(spec), "", "```", f"{spec.command} RECIPE [section.key=value ...]", "```"]
    if spec.needs:
        lines += ["", f"Reads what {', '.join(f'[{name}]({name}.md)' for name in spec.needs)} left, where the recipe"
                  " has them."]  # fmt: skip
    lines += [
        "",
        f"Leaves `runs/NAME/{spec.name}/`; made again when a value below or anything it was made from changes.",
    ]
    names = [spec.name, *(name for name, place in _OTHERS.items() if place == spec.name)]
    for name in names:
        if (field := Recipe.model_fields.get(name)) is not None:  # the report has none of its own name
            lines += [line for model in _models(field.annotation) for line in section(name, model)]
    return "\n".join(lines) + "\n"


def section(key: str, model: type[BaseModel]) -> list[str]:
    """Heading, what it is for and a table of its options; sections inside it follow."""
    rows = [
        f"| `{name}` | {_kind(each.annotation)} | {_default(each)} | {_text(each)} |"
        for name, each in model.model_fields.items()
    ]
    about = " ".join((model.__doc__ or "").split())
    lines = ["", f"## {key}", "", about, "", "| option | value | default | |", "|---|---|---|---|", *rows]
    for name, each in model.model_fields.items():
        lines += [line for nested in _models(each.annotation) for line in section(f"{key}.{name}", nested)]
    return lines


def _opening(spec: Stage) -> str:
    """The docstring of the stage's own file, without its usage lines."""
    program, *words = spec.command.split()
    place = next(word for word in words if word not in ("-m", "launch"))
    file = _HOME / (place if program == "accelerate" else place.replace(".", "/") + ".py")
    file = file if file.is_file() else file.with_suffix("") / "__main__.py"
    paragraphs = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")
    kept = [each for each in paragraphs if not each.lstrip().startswith(("python -m", "accelerate launch"))]
    said = kept[0].partition(": ")[2] if kept and kept[0].startswith("Stage `") else "".join(kept[:1])
    return said[:1].upper() + said[1:]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Sections within an annotation, through options, lists and dictionaries."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _kind(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in parts)
    if origin is not None and origin.__name__ == "Annotated":
        return _kind(parts[0])
    if origin in (list, tuple):
        return "list of " + " and ".join(dict.fromkeys(_kind(part) for part in parts if part is not Ellipsis))
    if origin is dict:
        return f"{_kind(parts[1])} by name"
    if annotation is type(None):
        return "null"
    if list(_models(annotation)):
        return "section, below"
    names = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "as below"
    return "`null`" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", r"\|")


def main() -> None:
    """Write every page into the folder."""
    if len(sys.argv) != 2:
        raise UserError("recipes.engine.docs: expected a folder, such as docs/stages")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        with atomic_write(folder / name) as beside:
            beside.write_text(text)


if __name__ == "__main__":
    run_main(main)
