"""Stage `benchmark`: measure speed, memory and size of every system, each in a new process pinned to its cores.

    python -m eval.benchmark recipes/demo/recipe.yaml

The baseline is the teacher in PyTorch fp32. It is measured first and last; the ratio of the two medians, the drift,
shows how much the machine itself changes during the run. A system that is closer to a limit of a budget than that noise
is measured again. Speed-ups over the baseline are measured separately: the baseline and the system play the same clips
alternately (`eval.latency.paired_timing`). Writes latency.json (`eval.latency.latency_rows`).
"""

import os
from dataclasses import asdict, replace
from pathlib import Path

from eval.audio.recordings import SAMPLE_RATE
from eval.audio.utterances import read_utterances
from eval.decoding.systems import list_systems
from eval.latency.budget_verdict import budget_candidates
from eval.latency.latency_rows import EmulatedRun, LatencyReport
from eval.latency.measuring import BenchmarkRunner, emulated_devices, settle_emulated
from eval.runtimes.model_format import ModelFormat
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError, run_main
from recipes.core.machine import describe_machine, usable_cores
from recipes.core.model_folder import resolve_model_folder
from recipes.core.progress import track
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.device_budget import load_budgets


def main() -> None:
    """Choose clips, measure every system, emulate the devices, and compare with the baseline."""
    recipe, command = parse_stage_arguments("benchmark")
    if (section := recipe.benchmark) is None:
        raise UserError("benchmark: expected a section, found none; add `benchmark: {}` to the recipe for its defaults")
    cores = usable_cores()
    if section.threads > cores:
        raise UserError(
            f"benchmark.threads: expected at most the {cores} cores of this machine, found {section.threads}; lower it"
        )
    with open_stage(recipe, "benchmark", command) as work:
        # 1. The systems, and test clips that fit the student's window, so that no system has to split them.
        teacher, student = recipe.teacher, student_folder(recipe)
        exported = recipe.root / "export" / "model"
        systems = list_systems(resolve_model_folder(teacher.model), student, exported, recipe.export.artefacts)
        window_samples = ModelFormat.load(student, teacher.language, teacher.task).window_samples
        clips = choose_clips(recipe.root / "corpus", section.clips, window_samples)
        runner, load_average = BenchmarkRunner(section, clips, teacher.language, teacher.task), os.getloadavg()[0]
        # 2. Each system with the benchmark's own threads.
        rows = [runner.measure(system) for system in track(systems, "benchmark", unit="system")]
        # 3. The systems that a budget judges, with the threads and the memory cap of each device.
        candidates = budget_candidates({system.name: system.role for system in systems})
        judged = [system for system in systems if system.name in candidates]
        devices = emulated_devices(section, recipe.budget, cores)
        runs = [
            EmulatedRun(names, *settings, [runner.measure(system, settings) for system in judged])
            for settings, names in track(devices.items(), "devices", unit="device")
        ]
        # 4. The drift, and systems that are too close to a limit once more.
        drift, budgets = runner.drift(systems[0], rows[0]), load_budgets(recipe.budget)
        emulated = {name for names in devices.values() for name in names}
        own = [budget for budget in budgets if budget.name not in emulated]
        rows = runner.settle(systems, rows, own, None, drift)
        runs = [settle_emulated(runner, systems, run, budgets, drift) for run in runs]
        # 5. Speed-ups over the baseline, both playing alternately.
        rows = [
            replace(row, speedup=ratio.value, speedup_interval=(ratio.low, ratio.high))
            for row, ratio in zip(rows, runner.speedups(systems), strict=True)
        ]
        # 6. Several clients at the same time.
        concurrency = [row for system in systems for row in runner.concurrency(system)]
        report = LatencyReport(
            baseline=systems[0].name, threads=section.threads, clips=len(clips), runs=section.runs,
            turns=section.turns, fixed_tokens=section.tokens, load_average=load_average,
            cpu=describe_machine()["cpu"], baseline_drift=drift, command=command, variants=rows, emulated=runs,
            concurrency=concurrency,
        )  # fmt: skip
        write_json(work.folder / "latency.json", asdict(report))
        work.finish(
            counts={"variants": len(rows), "clips": len(clips)},
            metrics={row.name: {"clip_p50_ms": row.clip_p50_ms, "speedup": row.speedup} for row in rows},
        )


def choose_clips(corpus: Path, count: int, window_samples: int) -> list[list[str]]:
    """Return references to at most `count` test recordings of at most `window_samples`, evenly spaced over the split.

    Even spacing gives every test set its share. Training recordings are used if the corpus has no test split.
    """
    utterances = read_utterances(corpus, "test") or read_utterances(corpus, "train")
    audio = [utterance.audio for utterance in utterances if utterance.seconds * SAMPLE_RATE <= window_samples]
    return audio[:: max(1, len(audio) // count)][:count]


if __name__ == "__main__":
    run_main(main)
