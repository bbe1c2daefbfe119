"""Stage `benchmark`: latency, memory and size of every variant, each in a fresh pinned process.

    python -m eval.benchmark recipes/demo/recipe.yaml

The teacher in PyTorch fp32 is the baseline. It is measured first and last: their ratio, the drift, tells how far the
machine's own noise reaches. A variant that is too near a limit of a budget for that noise is measured again. How many
times faster than the baseline a variant is, is measured apart, clip by clip in turn (`eval.latency.paired_timing`).
"""

import os
from collections.abc import Sequence

from tqdm import tqdm

from eval.audio.recordings import SAMPLE_RATE
from eval.audio.utterances import read_utterances
from eval.decoding.systems import System, list_systems
from eval.latency.budget_verdict import budget_candidates
from eval.latency.measuring import BenchmarkRunner
from eval.runtimes.model_format import ModelFormat
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError, run_main
from recipes.core.machine import describe_machine
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.device_budget import MeasurementSettings, emulated_settings, settings_for_device
from recipes.schema.recipe import Recipe


def main() -> None:
    """Choose the clips, measure each variant, compare with the baseline of this run."""
    recipe, command = parse_stage_arguments("benchmark")
    if (section := recipe.benchmark) is None:
        raise UserError("benchmark: the recipe has no benchmark section; add `benchmark: {}` for its defaults")
    cores = len(os.sched_getaffinity(0))
    if section.threads > cores:
        raise UserError(
            f"benchmark.threads: expected at most the {cores} cores of this machine, found {section.threads}"
        )
    with open_stage(recipe, "benchmark", command) as work:
        # 1. Test clips, evenly spaced over the split, so that every test set has its share.
        clips = choose_clips(recipe, section.clips)
        # 2. One process a variant; the baseline once more at the end.
        judged, load_average = list_systems(recipe), os.getloadavg()[0]
        bench = BenchmarkRunner(recipe, clips)
        variants = [bench.measure(system) for system in tqdm(judged, "benchmark", unit="variant")]
        # 3. The same under the threads and memory of each device that asks for others.
        runs = [
            {
                "devices": devices,
                **wanted._asdict(),
                "variants": [bench.measure(each, wanted) for each in budgeted_systems(judged)],
            }
            for wanted, devices in tqdm(_settings(recipe, cores).items(), "devices", unit="device")
        ]
        again = bench.measure(judged[0], settings_for_device(recipe))["clip_ms"]["p50"]
        baseline = variants[0]["clip_ms"]["p50"]
        # 4. What is too near a limit is measured again.
        bench.settle({system.name: system for system in judged}, variants, runs, again / baseline)
        # 5. How many times faster each is than the baseline, both in turn.
        for row, found in zip(variants, bench.speedups(judged), strict=True):
            row |= {"speedup": found["value"], "speedup_interval": [found["low"], found["high"]]}
        result = {
            "baseline": judged[0].name,
            "threads": section.threads,
            "clips": len(clips),
            "runs": section.runs,
            "turns": section.turns,
            "fixed_tokens": section.tokens,
            "load_average": load_average,
            "cpu": describe_machine()["cpu"],
            "baseline_drift": again / baseline,
            "command": command,
            "variants": variants,
            "emulated": runs,
            "concurrency": [row for system in judged for row in bench.concurrency(system)],
        }
        write_json(work.folder / "latency.json", result)
        work.finish(
            counts={"variants": len(variants), "clips": len(clips)},
            metrics={
                row["name"]: {"clip_p50_ms": row["clip_ms"]["p50"], "speedup": row["speedup"]} for row in variants
            },
        )


def choose_clips(recipe: Recipe, count: int) -> list[list[str]]:
    """References to so many test recordings, evenly spaced; of train ones where there are no others.

    Each fits the student's window, so that all systems hear the whole of it at once.
    """
    window = ModelFormat.load(student_folder(recipe), recipe.teacher.language, recipe.teacher.task).window_samples
    test = read_utterances(recipe.root / "corpus", "test") or read_utterances(recipe.root / "corpus", "train")
    fit = [item.audio for item in test if item.seconds * SAMPLE_RATE <= window]
    return fit[:: max(1, len(fit) // count)][:count]


def budgeted_systems(judged: Sequence[System]) -> list[System]:
    """The systems that a budget judges."""
    names = {
        row["name"] for row in budget_candidates([{"name": system.name, "role": system.role} for system in judged])
    }
    return [system for system in judged if system.name in names]


def _settings(recipe: Recipe, cores: int) -> dict[MeasurementSettings, list[str]]:
    """Settings to emulate, with their devices; no more threads than this machine has."""
    found: dict[MeasurementSettings, list[str]] = {}
    for name, wanted in emulated_settings(recipe).items():
        here = wanted._replace(threads=min(wanted.threads, cores))
        if here != settings_for_device(recipe):
            found.setdefault(here, []).append(name)
    return found


if __name__ == "__main__":
    run_main(main)
