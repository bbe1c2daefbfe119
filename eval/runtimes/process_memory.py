"""Memory of a process: its peak, a cap on it, and whether want of it was what failed.

The cap is a watch from outside: the kernel's high-water mark of resident memory is read every 20 ms, and the process is
killed once it is above the cap, as a device's low-memory killer does.

What it can: count what a device counts, without the process's help, whatever library allocates. What it cannot: make an
allocation fail so that a library may do with less; stop a burst between two looks (some tens of MB; the peak that is
reported holds it); and it counts file pages of memory-mapped weights that a device could take back.

The kernel's own limits were tried on the exports of alnum-real and do worse. They count what is reserved: an ONNX int8
model whose peak is 88 MB needs RLIMIT_AS 384 and RLIMIT_DATA 141 MB, OpenVINO fp16 858 and 201 for 148. And what meets
them is an abort in OpenBLAS, libgomp or a thread's start more often than an error that says so. A memory cgroup needs
rights that a benchmark should not ask for.
"""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOOK_EVERY_S = 0.02
_SAYINGS = ("out of memory", "can't allocate memory", "failed to allocate", "bad_alloc", "bad allocation")
"""Of torch, ONNX Runtime, MKL in CTranslate2, OpenVINO: all in ordinary RuntimeErrors or their own Exceptions."""


def out_of_memory(error: BaseException) -> bool:
    """Whether it was want of memory."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(saying in said for saying in _SAYINGS)


def peak_rss_mb(process: int | str = "self") -> float:
    """Peak resident memory of a program, 10^6 bytes. Raises ProcessLookupError once it has ended.

    Not getrusage's ru_maxrss: that survives exec on Linux, so a small program reports its parent's peak.
    """
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"/proc/{process}/status has no VmHWM line")


@dataclass
class MemoryCap:
    """A watched process."""

    memory_mb: float | None
    reached_mb: float | None = None
    """The peak at which it was killed; None while it was not."""


@contextmanager
def memory_cap(process: "subprocess.Popen[Any]", memory_mb: float | None) -> Iterator[MemoryCap]:
    """Watch a process while the body runs; None watches nothing."""
    cap, done = MemoryCap(memory_mb), threading.Event()

    def watch(limit: float) -> None:
        while not done.wait(_LOOK_EVERY_S) and process.poll() is None:
            try:
                peak = peak_rss_mb(process.pid)
            except (ProcessLookupError, FileNotFoundError):  # between its end and our look
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
