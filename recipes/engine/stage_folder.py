"""Stage folders: `runs/NAME/STAGE/` holds the output of a stage and its record, `stage.json`, which is written last.

A stage works in `STAGE.partial/` next to its final folder and renames it when it is complete. A folder without
`.partial` therefore always belongs to a finished stage, and a stage that was killed continues in its partial folder.
The messages of a stage are appended to `runs/NAME/logs/STAGE.log`.
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

from recipes.core.errors import RunError, UserError, exit_status, one_line
from recipes.core.logs import log, log_to_file
from recipes.core.machine import current_commit, describe_machine
from recipes.engine.flow import STAGE_BY_NAME, inputs_of
from recipes.engine.freshness import changed_inputs, fingerprints, sha256_of_text, stage_freshness
from recipes.engine.stage_record import (
    RECORD_FILE,
    OutputFile,
    StageRecord,
    read_any_record,
    read_record,
    write_record,
)
from recipes.schema.recipe import Recipe, load_recipe


class StageFolder:
    """The folder of a stage that is running.

    Attributes:
        folder: The partial folder, to which the stage writes its output.
        final: The folder that `finish` renames it to.
        main: Whether this is the main process of the stage, which alone writes the record.
    """

    def __init__(self, recipe: Recipe, name: str, command: str, main: bool):
        self.recipe, self.name, self.main = recipe, name, main
        self.final = recipe.root / name
        self.folder = recipe.root / f"{name}.partial"
        self._started = time.time()
        self._lock: int | None = None
        values = recipe.model_dump(mode="json")
        self._record: StageRecord = {
            "stage": name,
            "status": "running",
            "command": command,
            "recipe": {key: values[key] for key in STAGE_BY_NAME[name].sections},
            "inputs": fingerprints(recipe, name),
            "commit": current_commit(),
            "machine": describe_machine(),
        }

    def open(self) -> None:
        """Lock the partial folder. Its contents are kept only if they were made from the same inputs.

        Raises UserError if another process is running this stage.
        """
        earlier = read_any_record(self.folder)
        if earlier is None or changed_inputs(earlier, self.recipe, self.name):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The kernel releases this lock when the process ends, even if it is killed.
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{self.folder}: another process is making this stage; wait for it or stop it") from error
        self._record["seconds_before"] = earlier.get("seconds_before", 0.0) if earlier else 0.0
        write_record(self.folder, self._record)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)

    def fail(self, error: BaseException) -> None:
        """Record the error that ended the stage. Its partial output is kept for the next attempt."""
        if self.main and self.folder.is_dir():
            self._record |= {"status": "failed", "exit": exit_status(error), "error": one_line(error)}
            write_record(self.folder, self._record)

    def finish(self, *, counts: dict[str, Any] | None = None, metrics: dict[str, Any] | None = None) -> None:
        """Write the record with the size and the hash of every output, then replace the final folder."""
        if not self.main:
            return
        outputs = _hash_outputs(self.folder)
        self._record |= {
            "status": "done",
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(time.time() - self._started + self._record.get("seconds_before", 0.0), 2),
            "counts": counts or {},
            "metrics": metrics or {},
            "fingerprint": sha256_of_text(json.dumps({path: output["sha256"] for path, output in outputs.items()})),
            "outputs": outputs,
        }
        write_record(self.folder, self._record)
        _replace(self.folder, self.final)


def _hash_outputs(folder: Path) -> dict[str, OutputFile]:
    outputs = dict[str, OutputFile]()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != RECORD_FILE:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            outputs[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": digest}
    return outputs


def _replace(folder: Path, final: Path) -> None:
    """Rename `folder` to `final`, replacing it. A kill between the two renames loses neither."""
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    folder.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def log_file(recipe: Recipe, name: str) -> Path:
    """Return the log file of a stage."""
    return recipe.root / "logs" / f"{name}.log"


@contextmanager
def open_stage(
    recipe: Recipe, name: str, command: str, *, main: bool = True, wait: Callable[[], None] = lambda: None
) -> Iterator[StageFolder]:
    """Check the inputs of a stage, then yield its folder and write its log file. The body must call `finish`.

    A stage with several processes calls this in each of them with `main` true in one, which takes the lock, writes the
    record and the log file; `wait` is a barrier between them.

    Raises UserError if an input is missing or stale, and RunError if the body did not call `finish`.
    """
    for earlier in inputs_of(recipe, name):
        if not (freshness := stage_freshness(recipe, earlier)).current:
            raise UserError(
                f"{name}: its input {recipe.root / earlier} is {freshness.reason}; "
                f"run `{STAGE_BY_NAME[earlier].command} RECIPE`, or `sottovoce run RECIPE` for all missing stages"
            )
    stage_folder = StageFolder(recipe, name, command, main)
    if main:
        stage_folder.open()
    wait()
    try:
        with log_to_file(log_file(recipe, name)) if main else nullcontext():
            log.debug("started: %s", command)
            yield stage_folder
    except BaseException as error:
        stage_folder.fail(error)
        raise
    finally:
        stage_folder.close()
    if main and read_record(stage_folder.final) is None:
        raise RunError(f"{name}: the stage ended without a result")


def parse_stage_arguments(name: str, argv: Sequence[str] | None = None) -> tuple[Recipe, str]:
    """Parse the command line of a stage, `RECIPE [section.key=value ...]`.

    Returns the recipe and the command as it was typed.
    """
    command = STAGE_BY_NAME[name].command
    parser = argparse.ArgumentParser(prog=command)
    parser.add_argument("recipe", type=Path, help="recipe file, such as recipes/demo/recipe.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    args = parser.parse_args(argv)
    return load_recipe(args.recipe, args.overrides), shlex.join([*command.split(), str(args.recipe), *args.overrides])
