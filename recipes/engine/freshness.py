"""Decide whether the result of a stage is current.

A stage is current if the recipe sections and the fingerprints of everything else it depends on (the outputs of earlier
stages, files from outside the run) equal those in its record, and if its output files still exist.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from recipes.engine.flow import STAGE_BY_NAME, ExternalInput, all_inputs_of, inputs_of
from recipes.engine.stage_record import StageRecord, read_record
from recipes.schema.device_budget import emulated_settings
from recipes.schema.recipe import Recipe

_SAMPLED_ABOVE = 64 * 2**20
"""Size in bytes above which the fingerprint of a file covers only its size, its beginning and its end."""

_AUDIO_METADATA = (".jsonl", ".csv", ".json", ".txt", ".tsv")
"""Suffixes of the files in an audio folder whose contents are part of its fingerprint."""


@dataclass(frozen=True)
class Freshness:
    """Whether a stage is current."""

    current: bool
    reason: str
    """Explanation for the user, such as `stale: seed changed`."""


def stage_freshness(recipe: Recipe, name: str) -> Freshness:
    """Check a stage, and all earlier stages that it depends on, against the recipe and the files from outside."""
    for earlier in all_inputs_of(recipe, name):
        freshness = _own_freshness(recipe, earlier)
        if not freshness.current:
            return Freshness(False, f"{earlier} is {freshness.reason}")
    return _own_freshness(recipe, name)


def _own_freshness(recipe: Recipe, name: str) -> Freshness:
    """Check a stage on the assumption that all earlier stages are current."""
    folder = recipe.root / name
    record = read_record(folder)
    if record is None:
        started = folder.with_name(f"{name}.partial").is_dir()
        return Freshness(False, "unfinished" if started else "not made yet")
    if changed := changed_inputs(record, recipe, name):
        return Freshness(False, f"stale: {', '.join(changed)} changed")
    for path, output in record["outputs"].items():
        file = folder / path
        if not file.is_file() or file.stat().st_size != output["bytes"]:
            return Freshness(False, f"stale: {file} is missing or was changed")
    return Freshness(True, "up to date")


def changed_inputs(record: StageRecord, recipe: Recipe, name: str) -> list[str]:
    """Return the recipe keys and the other inputs of the stage `name` that differ from those in `record`."""
    values = recipe.model_dump(mode="json")
    changed = [
        key for key in STAGE_BY_NAME[name].sections if _with_new_defaults(key, record["recipe"].get(key)) != values[key]
    ]
    old, new = record["inputs"], fingerprints(recipe, name)
    return changed + [key for key in [*new, *(old.keys() - new.keys())] if old.get(key) != new.get(key)]


def _with_new_defaults(key: str, recorded: Any) -> Any:
    """Return a recorded section with the defaults of fields that were added to the schema later.

    A new field at its default changes no result, so it must not make a stage stale.
    """
    annotation: Any = Recipe.model_fields[key].annotation
    section: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        return section.dump_python(section.validate_python(recorded), mode="json")
    except ValidationError:
        return recorded


def fingerprints(recipe: Recipe, name: str) -> dict[str, str]:
    """Return a fingerprint of each input of the stage `name`: earlier stages, then files from outside the run."""
    result = dict[str, str]()
    for earlier in inputs_of(recipe, name):
        record = read_record(recipe.root / earlier)
        result[f"{earlier} output"] = record["fingerprint"] if record else "none"
    for kind in STAGE_BY_NAME[name].external_inputs:
        if kind == "emulation":
            # The benchmark depends only on the threads and the memory of a budget: new limits repeat no measurement.
            settings = emulated_settings(recipe.benchmark, recipe.budget)
            result |= {f"threads and memory of {device}": str(tuple(wanted)) for device, wanted in settings.items()}
        else:
            for path in _external_paths(recipe, kind):
                result[str(path)] = path_fingerprint(path, content=kind not in ("sources", "eval"))
    return result


def _external_paths(recipe: Recipe, kind: ExternalInput) -> list[Path]:
    """Return the local files and folders that an external input consists of."""
    match kind:
        case "teacher" | "init":
            model = recipe.student.source(recipe.teacher.model)[0] if kind == "init" else recipe.teacher.model
            return [Path(model)] if Path(model).is_dir() else []
        case "budget":
            return recipe.budget.devices if recipe.budget else []
        case "beside":
            return [run / "benchmark" / "latency.json" for run in recipe.beside]
        case "eval":
            options = (recipe.eval.noise, recipe.eval.long_form) if recipe.eval else ()
            return [option.folder for option in options if option and option.folder]
        case "sources":
            return [source.place for source in recipe.corpus.sources if source.place]
        case "emulation":
            return []


@cache
def path_fingerprint(path: Path, *, content: bool = True) -> str:
    """Return a hash of a file or a folder.

    With `content`, a folder is hashed by the contents of all its files, so that a second clone of a model is the same
    model. Without it, only metadata files are hashed by content and all others by size and modification time: it would
    take too long to read a hundred thousand recordings.
    """
    if path.is_file():
        return _file_fingerprint(path)
    lines = []
    for file in sorted(path.rglob("*")):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        if content or file.suffix in _AUDIO_METADATA:
            lines.append(f"{file.relative_to(path)} {_file_fingerprint(file)}")
        else:
            status = file.stat()
            lines.append(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}")
    return sha256_of_text("\n".join(lines))


def _file_fingerprint(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _SAMPLED_ABOVE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        head = stream.read(_SAMPLED_ABOVE // 2)
        stream.seek(-_SAMPLED_ABOVE // 2, os.SEEK_END)
        return hashlib.sha256(str(size).encode() + head + stream.read()).hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
