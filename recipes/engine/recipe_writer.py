"""Write a recipe as YAML with a comment above every value that needs a reason."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError
from recipes.engine.check import check_recipe
from recipes.schema.recipe import validate_recipe

LINE = 110
"""Longest line of a comment, in characters."""


@dataclass(frozen=True)
class RecipeDraft:
    """The values of a recipe that is about to be written, and why they were chosen."""

    values: Mapping[str, Any]
    """The recipe's sections. A key whose value is None is left out of the file, unless there is a reason for it."""
    reasons: Mapping[str, str]
    """Comment by dotted key, for example `train.learning_rate`."""
    header: Sequence[str]
    """Comment lines at the top of the file, below the command that runs it."""

    def written_values(self) -> dict[str, Any]:
        """Return the values that are written: all but those that are None without a reason, at every depth."""

        def written(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
            return {
                key: written(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
                for key, value in values.items()
                if value is not None or f"{prefix}{key}" in self.reasons
            }

        return written(self.values, "")


def refuse_existing(path: Path, option: str) -> None:
    """Raise UserError where there is a file at `path`; `option` names what the user may change."""
    if path.is_dir():
        raise UserError(
            f"{option}: expected the name of a file, found the folder {path}; add a name, such as recipe.yaml"
        )
    if path.exists():
        raise UserError(f"{option}: expected no file at {path}, found one; choose another path or remove the file")


def write_recipe(path: Path, draft: RecipeDraft, option: str = "--write") -> list[str]:
    """Check the draft, write it to `path` and return the lines of `sottovoce check`.

    Raises UserError where the file exists already or cannot be written, or the values are not a valid recipe. Nothing
    is written then.
    """
    refuse_existing(path, option)
    estimates = check_recipe(validate_recipe(draft.written_values(), str(path)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as beside:
            beside.write_text(recipe_text(path, draft), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{option}: expected a place that can be written at {path.absolute()}, found: {error.strerror or error}; "
            "choose another"
        ) from error
    return estimates


def recipe_text(path: Path, draft: RecipeDraft) -> str:
    """Return the YAML text of a draft, as `write_recipe` writes it to `path`."""
    header = [" ".join(line.splitlines()) for line in (shlex.join(["sottovoce", "run", str(path)]), *draft.header)]
    # Lines that fit stay as they are: they may be rows of a table.
    lines = [part for line in header for part in ([line] if len(line) <= LINE else wrap(line, LINE))]
    comment = "".join(f"# {line}\n" for line in lines)
    return comment + _section(draft.written_values(), draft.reasons, prefix="", indent="")


def _section(values: Mapping[str, Any], reasons: Mapping[str, str], *, prefix: str, indent: str) -> str:
    """Return the lines of one mapping, each value below the comment that explains it."""
    lines = []
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        lines += [f"{indent}# {line}\n" for line in wrap(reasons.get(dotted, ""), LINE - len(indent))]
        if isinstance(value, Mapping) and value:
            lines.append(f"{indent}{key}:\n")
            lines.append(_section(value, reasons, prefix=f"{dotted}.", indent=f"{indent}  "))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines.append(f"{indent}{key}:\n")
            lines += [f"{indent}  - {_inline(item)}\n" for item in value]
        else:
            lines.append(f"{indent}{key}: {_inline(value)}\n")
    return "".join(lines)


def _inline(value: Any) -> str:
    """Return a value as YAML on one line, such that `load_recipe` reads the same value."""
    text: str = yaml.dump(
        _escaped(value), Dumper=_Dumper, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("...\n").rstrip()


class _Dumper(yaml.SafeDumper):
    """Quotes texts such as 1e5 too, which are numbers to OmegaConf and, without a dot, texts to PyYAML."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), None)


def _escaped(value: Any) -> Any:
    """Return a value whose texts OmegaConf reads as they are: `${` opens an interpolation there."""
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def shipped_file(path: Path) -> Path:
    """Return a file below recipes/ as a recipe names it: as it is in a checkout, elsewhere that of the package."""
    return path if path.is_file() else Path(__file__).parents[2] / path


def run_name(path: Path) -> str:
    """Return the name of the run that a recipe file belongs to: its folder's for recipe.yaml, else the file's own."""
    return path.parent.name if path.name == "recipe.yaml" else path.stem
