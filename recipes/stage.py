"""Stage folders: `runs/NAME/STAGE/` holds a stage's output and, written last, `stage.json`.

A stage works in `STAGE.partial/` beside the final folder and is renamed when whole, so a folder without
`.partial` is always a finished one and a killed stage goes on in its own partial folder. A stage is current
while its recipe sections and the fingerprints of all else it was made from (the outputs of earlier stages, files from
outside) equal those in its `stage.json`, and its outputs are still there.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from recipes.devices import emulated
from recipes.errors import RunError, UserError, one_line
from recipes.flow import SPECS, before, needs
from recipes.machine import commit, machine
from recipes.schema import Recipe, load

_SAMPLED_ABOVE = 64 * 2**20  # bytes; larger outside files are fingerprinted by size, head and tail
_AUDIO_METADATA = (".jsonl", ".csv", ".json", ".txt", ".tsv")


@dataclass(frozen=True)
class State:
    """Whether a stage is current, and in words why not."""

    current: bool
    reason: str


def state(recipe: Recipe, name: str) -> State:
    """Compare a stage folder with the recipe, the earlier stages and the files from outside."""
    for earlier in before(recipe, name):
        if not (found := _own_state(recipe, earlier)).current:
            return State(False, f"{earlier} is {found.reason}")
    return _own_state(recipe, name)


def _own_state(recipe: Recipe, name: str) -> State:
    folder = recipe.root / name
    record = read_record(folder)
    if record is None:
        partial = folder.with_name(f"{name}.partial").is_dir()
        return State(False, "unfinished" if partial else "not made yet")
    if changed := _changed(record, recipe, name):
        return State(False, f"stale: {', '.join(changed)} changed")
    for path, output in record["outputs"].items():
        file = folder / path
        if not file.is_file() or file.stat().st_size != output["bytes"]:
            return State(False, f"stale: {file} is missing or was changed")
    return State(True, "up to date")


def _changed(record: dict[str, Any], recipe: Recipe, name: str) -> list[str]:
    """What a record was made from that is different now."""
    values = recipe.model_dump(mode="json")
    changed = [key for key in SPECS[name].sections if _as_read_now(key, record["recipe"].get(key)) != values[key]]
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
    spec, prints = SPECS[name], dict[str, str]()
    for need in needs(recipe, name):
        record = read_record(recipe.root / need)
        prints[f"{need} output"] = record["fingerprint"] if record else "none"
    for kind in spec.outside:
        if kind == "emulation":  # of a budget only what the benchmark does, so that a new limit measures nothing again
            prints |= {f"threads and memory of {name}": str(tuple(wanted)) for name, wanted in emulated(recipe).items()}
            continue
        for path in _outside(recipe, kind):
            prints[str(path)] = path_fingerprint(path, content=kind != "sources")
    return prints


def _outside(recipe: Recipe, kind: str) -> list[Path]:
    if kind == "teacher":
        return [path] if (path := Path(recipe.teacher.model)).is_dir() else []
    if kind == "budget":
        return recipe.budget.devices if recipe.budget else []
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
    return _hash("\n".join(parts))


def _file_fingerprint(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _SAMPLED_ABOVE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        head = stream.read(_SAMPLED_ABOVE // 2)
        stream.seek(-_SAMPLED_ABOVE // 2, os.SEEK_END)
        return hashlib.sha256(str(size).encode() + head + stream.read()).hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Work:
    """A stage being made: its folder, and the record that `finish` writes."""

    def __init__(self, recipe: Recipe, name: str, command: str, main: bool):
        self.recipe, self.name, self.main = recipe, name, main
        self.final = recipe.root / name
        self.folder = recipe.root / f"{name}.partial"
        self._started = time.time()
        self._lock: int | None = None
        values = recipe.model_dump(mode="json")
        self._record: dict[str, Any] = {
            "stage": name,
            "status": "running",
            "command": command,
            "recipe": {key: values[key] for key in SPECS[name].sections},
            "inputs": fingerprints(recipe, name),
            "commit": commit(),
            "machine": machine(),
        }

    def open(self) -> None:
        """Take the partial folder: go on in it when it was made from the same inputs, else begin anew."""
        try:
            record = json.loads((self.folder / "stage.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            record = {}
        if not record or _changed(record, self.recipe, self.name):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The lock goes with the process, however it ends.
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{self.folder}: another process is making this stage; wait for it or stop it") from error
        self._record["seconds_before"] = record.get("seconds_before", 0.0)
        write_json(self.folder / "stage.json", self._record)

    def close(self) -> None:
        """Let another process make this stage."""
        if self._lock is not None:
            os.close(self._lock)

    def fail(self, error: BaseException) -> None:
        """Note how the stage ended; what it made so far stays for the next try."""
        if self.main:
            status = getattr(error, "status", 1)
            write_json(
                self.folder / "stage.json",
                {**self._record, "status": "failed", "exit": status, "error": one_line(error)},
            )

    def finish(self, *, counts: dict[str, Any] | None = None, metrics: dict[str, Any] | None = None) -> None:
        """Write stage.json with every output's size and hash, then replace the final folder."""
        if not self.main:
            return
        outputs = {}
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and file.name != "stage.json":
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                outputs[file.relative_to(self.folder).as_posix()] = {
                    "bytes": file.stat().st_size,
                    "sha256": digest,
                }
        self._record |= {
            "status": "done",
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(time.time() - self._started + self._record.get("seconds_before", 0.0), 2),
            "counts": counts or {},
            "metrics": metrics or {},
            "fingerprint": _hash(json.dumps({path: output["sha256"] for path, output in outputs.items()})),
            "outputs": outputs,
        }
        write_json(self.folder / "stage.json", self._record)
        _replace(self.folder, self.final)


def _replace(folder: Path, final: Path) -> None:
    """Put a finished partial folder in the final one's place; a kill between the renames loses neither."""
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    folder.rename(final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def open_stage(
    recipe: Recipe, name: str, command: str, *, main: bool = True, wait: Callable[[], None] = lambda: None
) -> Iterator[Work]:
    """Refuse missing or stale inputs, then give the stage's working folder; the body calls `finish`.

    In a run of several processes only one is `main`: it takes the lock and writes the record; `wait` is their
    barrier.
    """
    for need in needs(recipe, name):
        if not (earlier := state(recipe, need)).current:
            raise UserError(
                f"{name}: its input {recipe.root / need} is {earlier.reason}; "
                f"run `{SPECS[need].command} RECIPE`, or `sottovoce run RECIPE` for all that is missing"
            )
    work = Work(recipe, name, command, main)
    if main:
        work.open()
    wait()
    try:
        yield work
    except BaseException as error:
        work.fail(error)
        raise
    finally:
        work.close()
    if main and read_record(work.final) is None:
        raise RunError(f"{name}: ended without a result")


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
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
    with write_beside(path) as beside:
        beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def arguments(name: str, argv: Sequence[str] | None = None) -> tuple[Recipe, str]:
    """The command line of a stage, `RECIPE [section.key=value ...]`: the recipe and the command as typed."""
    parser = argparse.ArgumentParser(prog=SPECS[name].command)
    parser.add_argument("recipe", type=Path, help="recipe file, such as recipes/demo/recipe.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    given = parser.parse_args(argv)
    return load(given.recipe, given.overrides), shlex.join(
        [*SPECS[name].command.split(), str(given.recipe), *given.overrides]
    )
