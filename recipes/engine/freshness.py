"""Whether a stage folder is current: its record compared with the recipe, the earlier stages and files from outside.

A stage is current while its recipe sections and the fingerprints of all else it was made from (the outputs of earlier
stages, files from outside) equal those in its `stage.json`, and its outputs are still there.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from recipes.engine.flow import STAGE_BY_NAME, all_inputs_of, inputs_of
from recipes.schema.device_budget import emulated_settings
from recipes.schema.recipe import Recipe

_SAMPLED_ABOVE = 64 * 2**20  # bytes; larger outside files are fingerprinted by size, head and tail
_AUDIO_METADATA = (".jsonl", ".csv", ".json", ".txt", ".tsv")


@dataclass(frozen=True)
class Freshness:
    """Whether a stage is current, and in words why not."""

    current: bool
    reason: str


def stage_freshness(recipe: Recipe, name: str) -> Freshness:
    """Compare a stage folder with the recipe, the earlier stages and the files from outside."""
    for earlier in all_inputs_of(recipe, name):
        if not (found := _own_state(recipe, earlier)).current:
            return Freshness(False, f"{earlier} is {found.reason}")
    return _own_state(recipe, name)


def _own_state(recipe: Recipe, name: str) -> Freshness:
    folder = recipe.root / name
    record = read_record(folder)
    if record is None:
        partial = folder.with_name(f"{name}.partial").is_dir()
        return Freshness(False, "unfinished" if partial else "not made yet")
    if changed := changed_inputs(record, recipe, name):
        return Freshness(False, f"stale: {', '.join(changed)} changed")
    for path, output in record["outputs"].items():
        file = folder / path
        if not file.is_file() or file.stat().st_size != output["bytes"]:
            return Freshness(False, f"stale: {file} is missing or was changed")
    return Freshness(True, "up to date")


def changed_inputs(record: dict[str, Any], recipe: Recipe, name: str) -> list[str]:
    """What a record was made from that is different now."""
    values = recipe.model_dump(mode="json")
    changed = [
        key for key in STAGE_BY_NAME[name].sections if _as_read_now(key, record["recipe"].get(key)) != values[key]
    ]
    made_from, now = record["inputs"], fingerprints(recipe, name)
    return changed + [key for key in [*now, *(made_from.keys() - now.keys())] if made_from.get(key) != now.get(key)]


def _as_read_now(key: str, recorded: Any) -> Any:
    """A recorded section, with what the schema has gained since at its default: that changes nothing."""
    annotation: Any = Recipe.model_fields[key].annotation
    section: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        return section.dump_python(section.validate_python(recorded), mode="json")
    except ValidationError:
        return recorded


def read_record(folder: Path) -> dict[str, Any] | None:
    """The `stage.json` of a finished stage, or None."""
    try:
        record: dict[str, Any] = json.loads((folder / "stage.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return record if record.get("status") == "done" else None


def fingerprints(recipe: Recipe, name: str) -> dict[str, str]:
    """What a stage is made from beside the recipe: a hash for each earlier stage and outside file."""
    spec, prints = STAGE_BY_NAME[name], dict[str, str]()
    for need in inputs_of(recipe, name):
        record = read_record(recipe.root / need)
        prints[f"{need} output"] = record["fingerprint"] if record else "none"
    for kind in spec.outside:
        if kind == "emulation":  # of a budget only what the benchmark does, so that a new limit measures nothing again
            prints |= {
                f"threads and memory of {name}": str(tuple(wanted))
                for name, wanted in emulated_settings(recipe).items()
            }
            continue
        for path in _outside(recipe, kind):
            prints[str(path)] = path_fingerprint(path, content=kind not in ("sources", "eval"))
    return prints


def _outside(recipe: Recipe, kind: str) -> list[Path]:
    if kind in ("teacher", "init"):
        model = recipe.student.source(recipe.teacher.model)[0] if kind == "init" else recipe.teacher.model
        return [path] if (path := Path(model)).is_dir() else []
    if kind == "budget":
        return recipe.budget.devices if recipe.budget else []
    if kind == "beside":
        return [run / "benchmark" / "latency.json" for run in recipe.beside]
    if kind == "eval":
        parts = (recipe.eval.noise, recipe.eval.long_form) if recipe.eval else ()
        return [part.folder for part in parts if part and part.folder]
    places = [source.place for source in recipe.corpus.sources]
    return [place for place in places if place]


@cache
def path_fingerprint(path: Path, *, content: bool = True) -> str:
    """Hash of a file, or of a folder: by content, or of a folder of audio its metadata by content, the rest by time.

    A model that was cloned again is the same model; a hundred thousand recordings are not read to see if they are.
    """
    if path.is_file():
        return _file_fingerprint(path)
    parts = []
    for file in sorted(path.rglob("*")):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        if content or file.suffix in _AUDIO_METADATA:
            parts.append(f"{file.relative_to(path)} {_file_fingerprint(file)}")
        else:
            status = file.stat()
            parts.append(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}")
    return sha256_of_text("\n".join(parts))


def _file_fingerprint(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _SAMPLED_ABOVE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        head = stream.read(_SAMPLED_ABOVE // 2)
        stream.seek(-_SAMPLED_ABOVE // 2, os.SEEK_END)
        return hashlib.sha256(str(size).encode() + head + stream.read()).hexdigest()


def sha256_of_text(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
