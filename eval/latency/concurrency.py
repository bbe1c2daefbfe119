"""Measure one process that serves several clients at the same time: `eval.benchmark` starts one per number of clients.

The process opens one model session per thread, or one per client if there are fewer clients, and divides its threads
among the sessions. Each client sends its next clip as soon as the last one is answered; requests are answered in the
order in which they arrive. The latency of a request is the whole time that its client waits. The process reads a
`MeasuringTask` as JSON from stdin and prints a `ClientLoad` as one line of JSON.
"""

import json
import os
import queue
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from eval.audio.recordings import read_audio
from eval.decoding.transcriber import Transcriber
from eval.latency.latency_rows import ClientLoad, MeasuringTask
from eval.runtimes.process_memory import peak_rss_mb
from eval.runtimes.registry import open_runtime
from recipes.core.machine import end_with_parent


def serve_clients(task: MeasuringTask) -> ClientLoad:
    """Answer at least `task.runs` requests, the same number for each of `task.clients` clients."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    # 1. The sessions, each warmed up.
    clips = [read_audio(audio) for audio in task.clips]
    sessions = min(task.clients, task.threads)
    idle: queue.SimpleQueue[Transcriber] = queue.SimpleQueue()
    folder, options = Path(task.folder), {"exact_tokens": task.tokens}
    for _ in range(sessions):
        runtime = open_runtime(task.runtime, folder, task.precision, task.threads // sessions)
        transcriber = Transcriber(runtime, folder, task.language, task.task)
        for clip in clips[: max(1, task.warmup // sessions)]:
            transcriber.transcribe([clip], **options)
        idle.put(transcriber)
    # 2. One thread per client, and one worker thread per session.
    requests = -(-task.runs // task.clients)

    def answer(clip: np.ndarray) -> int:
        """Transcribe a clip in an idle session; return the number of its tokens."""
        session = idle.get()  # there are as many sessions as workers, so one is idle
        try:
            return len(session.transcribe([clip], **options)[0].tokens)
        finally:
            idle.put(session)

    def run_client(number: int) -> tuple[list[float], int]:
        """Send requests one after the other; return the seconds that each took and the tokens of all answers."""
        seconds, tokens = [], 0
        for index in range(number * requests, (number + 1) * requests):
            sent = time.perf_counter()
            tokens += workers.submit(answer, clips[index % len(clips)]).result()
            seconds.append(time.perf_counter() - sent)
        return seconds, tokens

    with ThreadPoolExecutor(sessions) as workers, ThreadPoolExecutor(task.clients) as clients:
        started = time.perf_counter()
        results = list(clients.map(run_client, range(task.clients)))
        duration = time.perf_counter() - started
    # 3. The figures.
    waits_ms = 1e3 * np.concatenate([seconds for seconds, _ in results])
    return ClientLoad(
        clients=task.clients, sessions=sessions, requests=len(waits_ms), mean_ms=float(waits_ms.mean()),
        p50_ms=float(np.median(waits_ms)), p95_ms=float(np.percentile(waits_ms, 95)),
        requests_per_s=len(waits_ms) / duration, tokens_per_s=sum(tokens for _, tokens in results) / duration,
        peak_rss_mb=peak_rss_mb(),
    )  # fmt: skip


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(asdict(serve_clients(MeasuringTask(**json.load(sys.stdin))))))
