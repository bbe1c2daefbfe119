"""TODO: eval.latency.measuring."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from eval.decoding.systems import System
from eval.latency.budget_verdict import budget_candidates, emulated_run, within_noise
from eval.latency.paired_timing import median_interval, open_player, time_ratios
from eval.runtimes.process_memory import memory_cap
from recipes.core.errors import RunError
from recipes.core.machine import threads_environment
from recipes.schema.device_budget import MeasurementSettings, load_budgets, settings_for_device
from recipes.schema.recipe import Recipe


class BenchmarkRunner:
    """Starts the measuring processes of one recipe."""

    def __init__(self, recipe: Recipe, clips: Sequence[list[str]]):
        assert recipe.benchmark is not None
        self.recipe, self.section = recipe, recipe.benchmark
        self.task: dict[str, Any] = {
            "clips": list(clips), "runs": self.section.runs, "warmup": self.section.warmup,
            "tokens": self.section.tokens, "language": recipe.teacher.language, "task": recipe.teacher.task,
        }  # fmt: skip

    def measure(self, system: System, wanted: MeasurementSettings | None = None) -> dict[str, Any]:
        """One variant's row from a process of its own; `fits` is false where its device's memory is too small."""
        identity = {
            "name": system.name, "role": system.role, "runtime": system.runtime, "precision": system.precision,
            "size_mb": system.size_mb, "parameters_m": system.parameters_m,
        }  # fmt: skip
        frequency = psutil.cpu_freq()
        around = {"load_average": os.getloadavg()[0], "cpu_mhz": frequency.current if frequency else None}
        found = self.start(
            "eval.latency.timing", system, wanted or settings_for_device(self.recipe), {"details": wanted is None}
        )
        return {**identity, **around, **found}

    def settle(
        self, by_name: Mapping[str, System], variants: list[dict[str, Any]], runs: list[dict[str, Any]], drift: float
    ) -> None:
        """Measure again, in place, what a budget's verdict cannot be trusted on."""
        for budget in load_budgets(self.recipe):
            run = emulated_run(budget, runs)
            rows, wanted = (
                (run["variants"], MeasurementSettings(run["threads"], run["memory_mb"])) if run else (variants, None)
            )
            near = {
                row["name"]
                for row in budget_candidates(rows)
                if "measurements" not in row and within_noise(budget, row, drift)
            }
            for index, row in enumerate(rows):
                if row["name"] in near and self.section.repeats:
                    more = [self.measure(by_name[row["name"]], wanted) for _ in range(self.section.repeats)]
                    rows[index] = merge_measurements([row, *more])

    def speedups(self, judged: Sequence[System]) -> list[dict[str, float]]:
        """Of each system the baseline's time of a clip over its own, median with 95 % interval; the baseline first."""
        baseline, *others = judged
        found = [{"value": 1.0, "low": 1.0, "high": 1.0}]
        with open_player(self.task_of(baseline, settings_for_device(self.recipe)), baseline.name) as first:
            for system in tqdm(others, "in turn with the baseline", unit="variant"):
                with open_player(self.task_of(system, settings_for_device(self.recipe)), system.name) as second:
                    found.append(
                        median_interval(time_ratios(first, second, len(self.task["clips"]), self.section.turns))
                    )
        return found

    def task_of(self, system: System, wanted: MeasurementSettings) -> dict[str, Any]:
        """What a measuring process is told of a system."""
        return self.task | {
            "folder": str(system.folder), "runtime": system.runtime, "precision": system.precision,
            "threads": wanted.threads,
        }  # fmt: skip

    def concurrency(self, system: System) -> list[dict[str, Any]]:
        """A row for each number of clients."""
        here = settings_for_device(self.recipe)
        return [
            {"name": system.name, **self.start("eval.latency.concurrency", system, here, {"clients": clients})}
            for clients in tqdm(self.section.clients, f"clients of {system.name}", unit="run", leave=False)
        ]

    def start(self, module: str, system: System, wanted: MeasurementSettings, more: dict[str, Any]) -> dict[str, Any]:
        """What a measuring module finds of a system, in a process of its own; `more` goes into its task."""
        task = self.task_of(system, wanted) | more
        return run_task([sys.executable, "-m", module], system.name, task, wanted)


def run_task(command: list[str], name: str, task: dict[str, Any], wanted: MeasurementSettings) -> dict[str, Any]:
    """The JSON that a measuring process prints; `fits: false` with the reason where it died of the memory cap.

    Raises RunError where it failed otherwise.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=threads_environment(wanted.threads),
    )  # fmt: skip
    with memory_cap(process, wanted.memory_mb) as cap:
        said, errors = process.communicate(json.dumps(task))
    if cap.reached_mb is not None:
        reason = f"ended at {cap.reached_mb:.0f} MB of resident memory, the cap is {wanted.memory_mb:g} MB"
        return {"fits": False, "reason": reason, "peak_rss_mb": cap.reached_mb, "clip_ms": None, "rtf": None}
    if process.returncode != 0:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"benchmark: {name} ended with status {process.returncode}: {last}")
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result


def merge_measurements(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Measurements of one variant to one row: that of the median clip p95, with what all of them found.

    The noise is then what whole measurements differ by. One that did not fit decides.
    """
    if failed := next((row for row in rows if not row.get("fits", True)), None):
        return failed
    each = [
        {"clip_p50_ms": row["clip_ms"]["p50"], "clip_p95_ms": row["clip_ms"]["p95"], "rtf": row["rtf"],
         "peak_rss_mb": row["peak_rss_mb"]}
        for row in rows
    ]  # fmt: skip
    middle = int(np.argsort([found["clip_p95_ms"] for found in each])[(len(each) - 1) // 2])
    noise = {key: [min(found[key] for found in each), max(found[key] for found in each)] for key in each[0]}
    return {**rows[middle], "noise": noise, "measurements": each}
