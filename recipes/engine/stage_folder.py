"""Stage folders: `runs/NAME/STAGE/` holds a stage's output and, written last, `stage.json`.

A stage works in `STAGE.partial/` beside the final folder and is renamed when whole, so a folder without
`.partial` is always a finished one and a killed stage goes on in its own partial folder.
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
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from recipes.core.atomic_files import write_json
from recipes.core.errors import RunError, UserError, one_line
from recipes.core.logs import log_to_file
from recipes.core.machine import current_commit, describe_machine
from recipes.engine.flow import STAGE_BY_NAME, inputs_of
from recipes.engine.freshness import changed_inputs, fingerprints, read_record, sha256_of_text, stage_freshness
from recipes.schema.recipe import Recipe, load_recipe


class StageFolder:
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
            "recipe": {key: values[key] for key in STAGE_BY_NAME[name].sections},
            "inputs": fingerprints(recipe, name),
            "commit": current_commit(),
            "machine": describe_machine(),
        }

    def open(self) -> None:
        """Take the partial folder: go on in it when it was made from the same inputs, else begin anew."""
        try:
            record = json.loads((self.folder / "stage.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            record = {}
        if not record or changed_inputs(record, self.recipe, self.name):
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
            "fingerprint": sha256_of_text(json.dumps({path: output["sha256"] for path, output in outputs.items()})),
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
) -> Iterator[StageFolder]:
    """Refuse missing or stale inputs, then give the stage's working folder; the body calls `finish`.

    In a run of several processes only one is `main`: it takes the lock and writes the record; `wait` is their
    barrier.
    """
    for need in inputs_of(recipe, name):
        if not (earlier := stage_freshness(recipe, need)).current:
            raise UserError(
                f"{name}: its input {recipe.root / need} is {earlier.reason}; "
                f"run `{STAGE_BY_NAME[need].command} RECIPE`, or `sottovoce run RECIPE` for all that is missing"
            )
    work = StageFolder(recipe, name, command, main)
    if main:
        work.open()
    wait()
    log_file = recipe.root / "logs" / f"{name}.log"
    try:
        with log_to_file(log_file) if main else nullcontext():
            yield work
    except BaseException as error:
        work.fail(error)
        raise
    finally:
        work.close()
    if main and read_record(work.final) is None:
        raise RunError(f"{name}: ended without a result")


def parse_stage_arguments(name: str, argv: Sequence[str] | None = None) -> tuple[Recipe, str]:
    """The command line of a stage, `RECIPE [section.key=value ...]`: the recipe and the command as typed."""
    parser = argparse.ArgumentParser(prog=STAGE_BY_NAME[name].command)
    parser.add_argument("recipe", type=Path, help="recipe file, such as recipes/demo/recipe.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    given = parser.parse_args(argv)
    return load_recipe(given.recipe, given.overrides), shlex.join(
        [*STAGE_BY_NAME[name].command.split(), str(given.recipe), *given.overrides]
    )
