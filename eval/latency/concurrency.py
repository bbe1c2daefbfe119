"""N clients against one process that serves a model; started afresh for each N by eval/benchmark.py.

The process holds one session for each thread it may use, or for each client where those are fewer, and shares its
threads among them. A client sends its next clip as soon as its last is answered; requests are taken in the order they
come. A client's latency is what it waits altogether. Reads its task as JSON from stdin and prints one JSON line.
"""

import json
import os
import queue
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.runtimes.process_memory import peak_rss_mb
from eval.runtimes.registry import open_runtime
from recipes.core.machine import end_with_parent


def serve_clients(task: dict[str, Any]) -> dict[str, Any]:
    """`runs` requests, shared evenly among `clients`."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    clips = [read_audio(audio) for audio in task["clips"]]
    sessions = min(task["clients"], task["threads"])
    free: queue.SimpleQueue[Transcriber] = queue.SimpleQueue()
    folder, options = Path(task["folder"]), {"exact_tokens": task["tokens"]}
    for _ in range(sessions):
        runtime = open_runtime(task["runtime"], folder, task["precision"], task["threads"] // sessions)
        transcriber = Transcriber(runtime, folder, task["language"], task["task"])
        for clip in clips[: max(1, task["warmup"] // sessions)]:
            transcriber.transcribe([clip], **options)
        free.put(transcriber)
    each = -(-task["runs"] // task["clients"])

    def answer(clip: np.ndarray) -> int:
        session = free.get()  # as many as workers: one is always free
        try:
            return len(session.transcribe([clip], **options)[0].tokens)
        finally:
            free.put(session)

    def client(number: int) -> tuple[list[float], int]:
        """Waited seconds of each request, and the tokens of all answers."""
        waited, tokens = [], 0
        for index in range(number * each, (number + 1) * each):
            asked = time.perf_counter()
            tokens += workers.submit(answer, clips[index % len(clips)]).result()
            waited.append(time.perf_counter() - asked)
        return waited, tokens

    with ThreadPoolExecutor(sessions) as workers, ThreadPoolExecutor(task["clients"]) as clients:
        started = time.perf_counter()
        answers = list(clients.map(client, range(task["clients"])))
        seconds = time.perf_counter() - started
    waited_ms = 1e3 * np.concatenate([waited for waited, _ in answers])
    return {
        "clients": task["clients"],
        "sessions": sessions,
        "requests": len(waited_ms),
        "mean_ms": float(waited_ms.mean()),
        "p50_ms": float(np.median(waited_ms)),
        "p95_ms": float(np.percentile(waited_ms, 95)),
        "requests_per_s": len(waited_ms) / seconds,
        "tokens_per_s": sum(tokens for _, tokens in answers) / seconds,
        "peak_rss_mb": peak_rss_mb(),
    }


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(serve_clients(json.load(sys.stdin))))
