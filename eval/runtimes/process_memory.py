"""Memory of a process: its peak, a cap on it, and whether an error means that memory ran out.

The cap is enforced from outside the process: a thread reads the kernel's high-water mark of its resident memory every
20 ms and kills the process once the mark is above the cap, as a device's low-memory killer does.

This counts what a device counts, for every library and without the process's cooperation. It cannot make an allocation
fail so that a library might manage with less. It cannot stop a burst between two readings (some tens of MB; the
reported peak includes it). It also counts the file pages of memory-mapped weights, which a device could reclaim.

The kernel's own limits were tried on the exports of alnum-real and are worse. They count reserved memory: an ONNX int8
model with a peak of 88 MB needs RLIMIT_AS 384 MB and RLIMIT_DATA 141 MB; OpenVINO fp16 with a peak of 148 MB needs 858
and 201 MB. A process that reaches them is more often aborted in OpenBLAS, in libgomp or while starting a thread than
ended by an error that says why. A memory cgroup needs privileges that a benchmark should not ask for.
"""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.02
_OUT_OF_MEMORY_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
)
"""Parts of the messages of torch, ONNX Runtime, MKL in CTranslate2 and OpenVINO. All of them raise RuntimeErrors or
exceptions of their own, not MemoryErrors."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether `error` was raised because memory ran out, in Python or in one of the runtimes."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(part in message for part in _OUT_OF_MEMORY_MESSAGES)


def peak_rss_mb(process: int | str = "self") -> float:
    """Return the peak resident memory of a process (an id, or `self`) in MB (10^6 bytes).

    getrusage's ru_maxrss is not used: on Linux it survives exec, so that a small program reports its parent's peak.
    Raises ProcessLookupError if the process has ended.
    """
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"/proc/{process}/status has no VmHWM line")


@dataclass
class MemoryCap:
    """The cap on a process, and whether it was exceeded."""

    memory_mb: float | None
    """The cap in MB (10^6 bytes) of resident memory; None for no cap."""
    reached_mb: float | None = None
    """The peak in MB at which the process was killed; None if it was not killed."""


@contextmanager
def memory_cap(process: "subprocess.Popen[Any]", memory_mb: float | None) -> Iterator[MemoryCap]:
    """Kill the process if its resident memory exceeds `memory_mb` while the body runs; None sets no cap."""
    cap, done = MemoryCap(memory_mb), threading.Event()

    def watch(limit: float) -> None:
        while not done.wait(_POLL_SECONDS) and process.poll() is None:
            try:
                peak = peak_rss_mb(process.pid)
            except (ProcessLookupError, FileNotFoundError):  # it has ended since `poll`
                return
            if peak > limit:
                cap.reached_mb = peak
                process.kill()
                return

    thread = threading.Thread(target=watch, args=(memory_mb,)) if memory_mb is not None else None
    if thread:
        thread.start()
    try:
        yield cap
    finally:
        done.set()
        if thread:
            thread.join()
