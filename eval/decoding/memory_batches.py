"""Transcribe files in batches that fit a memory cap, in a worker process that can be replaced.

A worker process does the work, so that running out of memory ends neither the command nor the results so far, whether
the worker is killed by the cap or the system, or aborted by a library. It starts with a batch of one clip and doubles
the size while the measured memory per clip leaves room. If the cap is exceeded all the same, a new worker continues
with at most half the batch size.

The worker writes one JSON object per line to stdout: `{"batch": size}` before each batch, then `{"row": ...}` for each
of its files, or `{"out_of_memory": message}` as its last line.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from eval.audio.recordings import AudioError, read_audio
from eval.decoding.file_results import FileResult, FileTranscript, UnreadableFile
from eval.runtimes.process_memory import memory_cap, out_of_memory, peak_rss_mb
from recipes.core.errors import UserError
from recipes.core.logs import log
from recipes.core.machine import end_with_parent

MAX_BATCH = 64
"""Maximum number of clips in a batch; a CPU gains nothing from more."""
_PLANNED_SHARE = 0.9
"""Share of the cap that a batch is planned to fill, since its texts may be longer than those measured so far."""
_OUT_OF_MEMORY_EXITS = (-9, -6)
"""Exit codes of a process that ran out of memory: killed by the system or the cap, or aborted by a library."""


@dataclass
class BatchSize:
    """Plans the size of the next batch from the memory that the batches so far have taken."""

    cap_mb: float
    floor_mb: float
    """Resident memory before the first batch, with the model loaded."""
    limit: int
    """Maximum size."""
    size: int = 1
    """Number of clips in the next batch."""

    def update(self, batch: int, peak_mb: float) -> None:
        """Set the next size, at most twice `batch`, after a batch of that size with memory peaking at `peak_mb`."""
        # At least 1 MB per clip: a batch that reused free memory does not raise the peak.
        per_clip_mb = max(1.0, (peak_mb - self.floor_mb) / batch)
        fits = int((_PLANNED_SHARE * self.cap_mb - self.floor_mb) / per_clip_mb)
        self.size = max(1, min(fits, 2 * batch, self.limit))


def run_worker(
    files: Sequence[Path], cap_mb: float, start: int, limit: int,
    transcribe: Callable[[list[np.ndarray]], list[FileTranscript]],
) -> None:  # fmt: skip
    """Transcribe the files from index `start` on and write the results to stdout; this runs in the worker process.

    Args:
        files: All audio files of the command.
        cap_mb: The memory cap in MB (10^6 bytes), to plan batches with; the parent process enforces it.
        start: Index of the first file to transcribe.
        limit: Maximum batch size.
        transcribe: Transcribes clips [N] at 16 kHz as one batch.
    """
    end_with_parent()
    size = BatchSize(cap_mb, psutil.Process().memory_info().rss / 1e6, limit)
    while start < len(files):
        batch = files[start : start + size.size]
        _write_line({"batch": len(batch)})
        clips: dict[int, np.ndarray] = {}
        results: dict[int, FileResult] = {}
        for index, file in enumerate(batch):
            try:
                clips[index] = read_audio(file)
            except AudioError as error:
                results[index] = UnreadableFile(str(error))
        try:
            results |= zip(clips, transcribe(list(clips.values())), strict=True)
        except Exception as error:
            if not out_of_memory(error):
                raise
            _write_line({"out_of_memory": str(error)})
            sys.exit(1)
        for index in range(len(batch)):
            _write_line({"row": _to_row(results[index])})
        start += len(batch)
        size.update(len(batch), peak_rss_mb())


def _to_row(result: FileResult) -> dict[str, Any]:
    return {"error": result.reason} if isinstance(result, UnreadableFile) else result.to_json()


def _from_row(row: dict[str, Any]) -> FileResult:
    return UnreadableFile(row["error"]) if "error" in row else FileTranscript.from_json(row)


def _write_line(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def transcribe_within_memory(command: Sequence[str], files: int, memory_mb: float) -> Iterator[FileResult]:
    """Yield the result of each file, in order, from worker processes that are killed above a memory cap.

    Args:
        command: Command line of the worker; the index of the first file and the maximum batch size are appended.
        files: Number of files.
        memory_mb: The cap on resident memory in MB (10^6 bytes).

    Raises UserError if a single clip exceeds the cap, and SystemExit with the worker's status if it fails otherwise.
    """
    done, limit = 0, MAX_BATCH
    while done < files:
        process = subprocess.Popen([*command, str(done), str(limit)], stdout=subprocess.PIPE, text=True)
        batch, reported_out_of_memory = 0, False
        try:
            with memory_cap(process, memory_mb) as cap:
                assert process.stdout is not None
                for line in process.stdout:
                    if not line.endswith("\n"):  # the process ended while writing it
                        break
                    message = json.loads(line)
                    batch = message.get("batch", batch)
                    reported_out_of_memory = "out_of_memory" in message
                    if "row" in message:
                        done += 1
                        yield _from_row(message["row"])
                code = process.wait()
        finally:
            process.kill()
            process.wait()
        if code == 0:
            continue
        if not reported_out_of_memory and cap.reached_mb is None and code not in _OUT_OF_MEMORY_EXITS:
            sys.exit(code)
        reached = f"{cap.reached_mb:.0f} MB" if cap.reached_mb is not None else "the machine's own limit"
        if batch <= 1:
            raise UserError(f"--memory-mb {memory_mb:g}: one clip takes more, the process ended at {reached}; raise it")
        limit = batch // 2
        log.warning(f"out of memory with {batch} clips at {reached}, going on with {limit}")
