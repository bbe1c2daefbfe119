"""`stage.json`: the record in a stage folder of what the stage was made from and what it wrote."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from recipes.core.atomic_files import write_json
from recipes.core.machine import MachineDescription

RECORD_FILE = "stage.json"
"""Name of the record in the folder of a stage."""


class OutputFile(TypedDict):
    """A file that a stage wrote."""

    bytes: int
    sha256: str


class StageRecord(TypedDict):
    """Contents of `stage.json`. The keys that are not required are written when the stage ends."""

    stage: str
    status: Literal["running", "failed", "done"]
    command: str
    """Command that ran the stage, as it was typed."""
    recipe: dict[str, Any]
    """Values of the recipe keys that the stage depends on (`Stage.sections`)."""
    inputs: dict[str, str]
    """Fingerprints of everything else that the stage depends on; see `fingerprints`."""
    commit: str | None
    """Commit of the checkout; see `current_commit`."""
    machine: MachineDescription
    seconds_before: NotRequired[float]
    """Seconds that interrupted attempts took, whose work this one continues."""
    finished: NotRequired[str]
    """Local time at which the stage finished, in ISO 8601 format."""
    seconds: NotRequired[float]
    """Seconds that the stage took, interrupted attempts included."""
    counts: NotRequired[dict[str, Any]]
    """Numbers of items that the stage handled, such as utterances."""
    metrics: NotRequired[dict[str, Any]]
    """Main results of the stage."""
    fingerprint: NotRequired[str]
    """Hash of all outputs. Later stages compare it to see whether their input has changed."""
    outputs: NotRequired[dict[str, OutputFile]]
    """Files that the stage wrote, by path relative to its folder."""
    exit: NotRequired[int]
    """Exit status of a failed stage."""
    error: NotRequired[str]
    """One-line message of a failed stage."""


def read_record(folder: Path) -> StageRecord | None:
    """Return the record of a finished stage, or None if `folder` does not contain one."""
    record = read_any_record(folder)
    return record if record is not None and record["status"] == "done" else None


def read_records(run: Path, names: Iterable[str]) -> dict[str, StageRecord]:
    """Return the records of those stages in `names` that are finished, from the folder of a run."""
    records = {name: read_record(run / name) for name in names}
    return {name: record for name, record in records.items() if record is not None}


def read_any_record(folder: Path) -> StageRecord | None:
    """Return the record of a stage that is running, failed or finished, or None if there is no readable record."""
    try:
        record: StageRecord = json.loads((folder / RECORD_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return record if record and "status" in record else None


def write_record(folder: Path, record: StageRecord) -> None:
    """Write the record of a stage into its folder."""
    write_json(folder / RECORD_FILE, record)
