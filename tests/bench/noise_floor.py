"""Measure the noise of the latency measurement, and whether it detects a slow-down of 5 %.

    python -m tests.bench.noise_floor RECIPE [section.key=value ...]        one JSON line

One exported artefact of a finished run is measured ten times as the benchmark stage measures it. Each time it is also
measured in turn with a copy that is 5 % slower, because it goes on computing for a twentieth of the clip's time after
each clip. `spread` is the largest median divided by the smallest. `p` is the p value of a sign test on the ten ratios:
if the copy were no slower, each ratio would be above or below 1 with equal probability.
"""

import json
import sys
import time
from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from eval.benchmark import choose_clips
from eval.decoding.systems import list_systems
from eval.decoding.transcriber import Transcriber
from eval.latency.latency_rows import MeasuringTask
from eval.latency.measuring import BenchmarkRunner, time_system
from eval.latency.paired_timing import open_player, serve_clips, time_ratios
from eval.runtimes.model_format import ModelFormat
from eval.scoring.resampling import median_interval
from recipes.core.errors import run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.core.progress import track
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import parse_stage_arguments
from recipes.schema.device_budget import settings_for_device

REPETITIONS, SLOW_DOWN = 10, 0.05


def main() -> None:
    """Measure the artefact alone, and the slower copy's time over the artefact's, ten times each."""
    recipe, _ = parse_stage_arguments("benchmark")
    assert recipe.benchmark is not None
    teacher, student = recipe.teacher, student_folder(recipe)
    exported = recipe.root / "export" / "model"
    systems = list_systems(resolve_model_folder(teacher.model), student, exported, recipe.export.artefacts)
    (system,) = [system for system in systems if system.name == "onnx-int8"]
    window_samples = ModelFormat.load(student, teacher.language, teacher.task).window_samples
    clips = choose_clips(recipe.root / "corpus", recipe.benchmark.clips, window_samples)
    runner = BenchmarkRunner(recipe.benchmark, clips, teacher.language, teacher.task)
    wanted = settings_for_device(recipe.benchmark)
    task, alone, ratios = runner.task_of(system, wanted), list[float](), list[float]()
    for _ in track(range(REPETITIONS), "measuring", unit="repetition"):
        alone.append(time_system(task, system.name).clip_ms.p50)
        with open_player(task, "slowed", "tests.bench.noise_floor") as slower, open_player(task, system.name) as plain:
            ratios.append(median_interval(time_ratios(slower, plain, len(clips), recipe.benchmark.turns)).value)
    print(json.dumps({
        "bench": "noise_floor", "artefact": system.name, "times": REPETITIONS, "threads": wanted.threads,
        "clip_p50_ms": [round(x, 2) for x in alone], "spread": round(max(alone) / min(alone), 3),
        "coefficient_of_variation": round(float(np.std(alone, ddof=1) / np.mean(alone)), 4),
        "slowed_by": SLOW_DOWN, "slowed_ratios": [round(x, 4) for x in ratios],
        "slowed_ratio": round(float(np.median(ratios)), 4),
        "p": round(sign_test(sum(ratio > 1 for ratio in ratios), REPETITIONS), 5),
    }))  # fmt: skip


def sign_test(above: int, times: int) -> float:
    """Return the one-sided p value of `above` of `times` ratios being above 1, if both sides are equally likely."""
    return sum(comb(times, count) for count in range(above, times + 1)) / 2**times


def slow_down() -> None:
    """Make the transcriber of this process compute on, after each clip, for a share of the clip's time."""
    transcribe = Transcriber.transcribe

    def slower(self: Transcriber, clips: Sequence[np.ndarray], **options: Any) -> Any:
        started = time.perf_counter()
        result = transcribe(self, clips, **options)
        end = time.perf_counter() + SLOW_DOWN * (time.perf_counter() - started)
        while time.perf_counter() < end:
            pass
        return result

    Transcriber.transcribe = slower  # type: ignore[method-assign]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_main(main)
    else:
        slow_down()
        serve_clips(MeasuringTask(**json.loads(sys.stdin.readline())))
