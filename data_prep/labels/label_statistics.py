"""Figures about a label set for its stage record and the report, and the speed of labelling."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from data_prep.labels.label_store import Label, shard_files


class LabelCounts(TypedDict):
    """`counts` in the stage record of `labels`."""

    utterances: int
    errors: int
    """Utterances that could not be labelled."""
    sampled: int
    """Labels that were sampled because the greedy text was degenerate."""


class LabelMetrics(TypedDict):
    """`metrics` in the stage record of `labels`."""

    audio_hours: float
    mean_logprob: float | None
    """Mean over the labels of their tokens' mean log-probability."""
    store_mb_per_hour: float | None
    """Size of the shards, in 10^6 bytes per hour of audio."""
    audio_seconds_per_second: float | None
    """Speed of labelling, start-up excluded; None if the teacher did not run."""
    processes: int


def count_labels(labels: Sequence[Label]) -> LabelCounts:
    """Count the labels, the failed ones and the sampled ones."""
    return {
        "utterances": len(labels),
        "errors": sum(label.error is not None for label in labels),
        "sampled": sum(label.plain.temperature > 0 for label in labels),
    }


def measure_label_set(labels: Sequence[Label], folder: Path, speed: float | None, processes: int) -> LabelMetrics:
    """Summarize the label set in `folder`.

    Args:
        labels: All of its labels.
        folder: Folder of the shards.
        speed: Seconds of audio labelled per second, from `take_speed`.
        processes: Number of processes that labelled.
    """
    hours = sum(label.seconds for label in labels) / 3600
    size = sum(file.stat().st_size for file in shard_files(folder))
    return {
        "audio_hours": round(hours, 4),
        "mean_logprob": statistics.fmean(label.plain.mean_logprob for label in labels) if labels else None,
        "store_mb_per_hour": round(size / 1e6 / hours, 3) if hours else None,
        "audio_seconds_per_second": speed,
        "processes": processes,
    }


def record_speed(folder: Path, process: int, audio_seconds: float, seconds: float) -> None:
    """Append the length of a batch's audio, and the time its labelling took, to the speed log of a process."""
    with (folder / f"speed-{process}.txt").open("a") as log_file:
        log_file.write(f"{audio_seconds} {seconds}\n")


def take_speed(folder: Path, processes: int) -> float | None:
    """Return the seconds of audio labelled per second by all processes together, and remove the speed logs.

    Start-up is excluded. Interrupted runs count too; a line that was cut off by a kill does not.
    """
    files = list(folder.glob("speed-*.txt"))
    lines = [line.split() for file in files for line in file.read_text().splitlines()]
    for file in files:
        file.unlink()
    audio, seconds = (sum(float(line[column]) for line in lines if len(line) == 2) for column in (0, 1))
    return round(processes * audio / seconds, 1) if seconds else None
