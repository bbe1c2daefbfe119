"""Batches that fit a memory cap: their size is found by measuring, and lowered when the cap was hit all the same.

The work is done by a process of its own, so that whatever ends it for want of memory (the cap's watch, the system, an
abort inside a library) ends neither the command nor what was already said. It begins with one clip and doubles while
what a clip has taken so far leaves room.
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
from tqdm import tqdm

from eval.audio.recordings import AudioError, read_audio
from eval.runtimes.process_memory import memory_cap, out_of_memory, peak_rss_mb
from recipes.core.errors import UserError
from recipes.core.machine import end_with_parent

LARGEST = 64
"""Clips; a CPU gains nothing beyond."""
_SHARE = 0.9
"""Of the cap that a batch is planned to fill: its texts may be longer than those measured."""
_SIGNALS = (-9, -6)
"""How a process ends for want of memory: killed by the system or the watch, or aborted by a library."""

Row = dict[str, Any]
"""What is said of one file, or its `error`."""


@dataclass
class BatchSize:
    """The size of the next batch, by what the batches before it took."""

    cap_mb: float
    floor_mb: float
    """Resident before the first batch, the model loaded."""
    most: int
    size: int = 1

    def after(self, batch: int, peak_mb: float) -> None:
        """A batch of so many clips is done, and memory has peaked so high: at most twice as many may follow."""
        # At least 1 MB: of memory taken from what was free already, nothing shows.
        each_mb = max(1.0, (peak_mb - self.floor_mb) / batch)
        fits = int((_SHARE * self.cap_mb - self.floor_mb) / each_mb)
        self.size = max(1, min(fits, 2 * batch, self.most))


def run_worker(
    audio: Sequence[Path], cap_mb: float, start: int, most: int, transcribe: Callable[[list[np.ndarray]], list[Row]]
) -> None:
    """In the working process: files from `start` on, a JSON line for each batch begun and each file done."""
    end_with_parent()
    size = BatchSize(cap_mb, psutil.Process().memory_info().rss / 1e6, most)
    while start < len(audio):
        files = audio[start : start + size.size]
        _say({"batch": len(files)})
        rows: list[Row] = []
        clips: dict[int, np.ndarray] = {}
        for index, file in enumerate(files):
            try:
                clips[index] = read_audio(file)
                rows.append({})
            except AudioError as error:
                rows.append({"error": str(error)})
        try:
            said = transcribe(list(clips.values()))
        except Exception as error:
            if not out_of_memory(error):
                raise
            _say({"out_of_memory": str(error)})
            sys.exit(1)
        for index, row in zip(clips, said, strict=True):
            rows[index] = row
        for row in rows:
            _say({"row": row})
        start += len(files)
        size.after(len(files), peak_rss_mb())


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def transcribe_within_memory(command: Sequence[str], files: int, memory_mb: float) -> Iterator[Row]:
    """A row for each file, in order, of a working process kept below the cap.

    `command` is given where to start and the largest batch. Raises UserError where one clip is too much, and exits as
    the process did where it failed otherwise.
    """
    done, most = 0, LARGEST
    while done < files:
        process = subprocess.Popen([*command, str(done), str(most)], stdout=subprocess.PIPE, text=True)
        batch, short = 0, False
        try:
            with memory_cap(process, memory_mb) as cap:
                assert process.stdout is not None
                for line in process.stdout:
                    if not line.endswith("\n"):  # cut off by its end
                        break
                    said = json.loads(line)
                    batch, short = said.get("batch", batch), "out_of_memory" in said
                    if "row" in said:
                        done += 1
                        yield said["row"]
                code = process.wait()
        finally:
            process.kill()
            process.wait()
        if code == 0:
            continue
        if not short and cap.reached_mb is None and code not in _SIGNALS:
            sys.exit(code)
        reached = f"{cap.reached_mb:.0f} MB" if cap.reached_mb is not None else "the machine's own limit"
        if batch <= 1:
            raise UserError(f"--memory-mb {memory_mb:g}: one clip takes more, the process ended at {reached}; raise it")
        most = batch // 2
        tqdm.write(f"out of memory with {batch} clips at {reached}, going on with {most}", file=sys.stderr)
