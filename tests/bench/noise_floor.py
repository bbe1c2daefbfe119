"""The noise floor of the latency harness, and whether a slow-down of 5 % rises above it.

    python -m tests.bench.noise_floor RECIPE [section.key=value ...]        one JSON line

One export of a finished run is measured ten times as the benchmark measures it, each time in turn with the same export
made 5 % slower: after each clip it computes on for a twentieth of the clip's time. Spread is the largest median over
the least; of the ten ratios one is as likely above as below 1, were the slower one no slower.
"""

import json
import sys
import time
from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.benchmark import choose_clips
from eval.decoding.systems import list_systems
from eval.decoding.transcriber import Transcriber
from eval.latency.measuring import BenchmarkRunner
from eval.latency.paired_timing import median_interval, open_player, serve_clips, time_ratios
from recipes.core.errors import run_main
from recipes.engine.stage_folder import parse_stage_arguments
from recipes.schema.device_budget import settings_for_device

TIMES, SLOWER = 10, 0.05


def main() -> None:
    """Measure the artefact by itself, and its ratio to the slower one, ten times each."""
    recipe, _ = parse_stage_arguments("benchmark")
    assert recipe.benchmark is not None
    (system,) = [system for system in list_systems(recipe) if system.name == "onnx-int8"]
    bench, wanted = (
        BenchmarkRunner(recipe, clips := choose_clips(recipe, recipe.benchmark.clips)),
        settings_for_device(recipe),
    )
    task, alone, ratios = bench.task_of(system, wanted), list[float](), list[float]()
    for _ in tqdm(range(TIMES), "measuring"):
        alone.append(bench.start("eval.latency.timing", system, wanted, {"details": False})["clip_ms"]["p50"])
        with open_player(task, "slowed", "tests.bench.noise_floor") as slower, open_player(task, system.name) as plain:
            ratios.append(median_interval(time_ratios(slower, plain, len(clips), recipe.benchmark.turns))["value"])
    print(json.dumps({
        "bench": "noise_floor", "artefact": system.name, "times": TIMES, "threads": wanted.threads,
        "clip_p50_ms": [round(x, 2) for x in alone], "spread": round(max(alone) / min(alone), 3),
        "coefficient_of_variation": round(float(np.std(alone, ddof=1) / np.mean(alone)), 4),
        "slowed_by": SLOWER, "slowed_ratios": [round(x, 4) for x in ratios],
        "slowed_ratio": round(float(np.median(ratios)), 4),
        "p": round(sign_test(sum(ratio > 1 for ratio in ratios), TIMES), 5),
    }))  # fmt: skip


def sign_test(above: int, times: int) -> float:
    """One-sided p value of so many of the ratios being above 1, were either side as likely."""
    return sum(comb(times, more) for more in range(above, times + 1)) / 2**times


def slow_down() -> None:
    """Make the transcriber of this process work on for a share of each clip's time."""
    transcribe = Transcriber.transcribe

    def slower(self: Transcriber, clips: Sequence[np.ndarray], **options: Any) -> Any:
        started = time.perf_counter()
        result = transcribe(self, clips, **options)
        end = time.perf_counter() + SLOWER * (time.perf_counter() - started)
        while time.perf_counter() < end:
            pass
        return result

    Transcriber.transcribe = slower  # type: ignore[method-assign]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_main(main)
    else:
        slow_down()
        serve_clips(json.loads(sys.stdin.readline()))
