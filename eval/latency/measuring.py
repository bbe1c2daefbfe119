"""Start measuring processes, one per system and setting, and read what they print."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil

from eval.decoding.systems import System
from eval.latency.budget_verdict import budget_candidates, within_noise
from eval.latency.latency_rows import (
    ClientLoad,
    ConcurrencyRow,
    EmulatedRun,
    LatencyRow,
    MeasuringTask,
    RepeatedMeasurement,
    SystemTiming,
)
from eval.latency.paired_timing import open_player, time_ratios
from eval.runtimes.process_memory import memory_cap
from eval.scoring.accuracy_rows import Interval
from eval.scoring.resampling import median_interval
from recipes.core.errors import RunError
from recipes.core.machine import threads_environment
from recipes.core.progress import track
from recipes.core.typed_json import parse_json
from recipes.schema.benchmark_section import BenchmarkSection
from recipes.schema.budget_section import BudgetSection
from recipes.schema.device_budget import DeviceBudget, MeasurementSettings, emulated_settings, settings_for_device


class MemoryCapReached(Exception):
    """A measuring process was ended because its resident memory exceeded the cap of its device."""

    def __init__(self, reached_mb: float, cap_mb: float):
        super().__init__(f"ended at {reached_mb:.0f} MB of resident memory, the cap is {cap_mb:g} MB")
        self.reached_mb = reached_mb


def run_task(command: Sequence[str], name: str, task: Mapping[str, Any], settings: MeasurementSettings) -> Any:
    """Run a measuring process with `task` as JSON on its stdin, and return the JSON in the last line of its stdout.

    Raises MemoryCapReached if the process exceeded `settings.memory_mb`, and RunError if it failed otherwise; `name` is
    the name of the system in that message.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=threads_environment(settings.threads),
    )  # fmt: skip
    with memory_cap(process, settings.memory_mb) as cap:
        output, errors = process.communicate(json.dumps(task))
    if cap.reached_mb is not None and settings.memory_mb is not None:
        raise MemoryCapReached(cap.reached_mb, settings.memory_mb)
    if process.returncode != 0:
        last_line = (errors.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"benchmark: {name} ended with status {process.returncode}: {last_line}")
    return json.loads(output.splitlines()[-1])


def time_system(task: MeasuringTask, name: str, memory_mb: float | None = None) -> SystemTiming:
    """Measure one system in a new process (`eval.latency.timing`). Raises as `run_task` does."""
    command = [sys.executable, "-m", "eval.latency.timing"]
    output = run_task(command, name, asdict(task), MeasurementSettings(task.threads, memory_mb))
    return parse_json(SystemTiming, output, f"benchmark: timing of {name}")


@dataclass(frozen=True)
class BenchmarkRunner:
    """Measures systems as the benchmark section of a recipe asks for, all on the same clips."""

    section: BenchmarkSection
    clips: Sequence[Sequence[str]]
    """References to the recordings, as in `Utterance.audio`."""
    language: str | None
    task: str = "transcribe"

    def measure(self, system: System, settings: MeasurementSettings | None = None) -> LatencyRow:
        """Measure one system in a process of its own.

        Without `settings` it runs with the benchmark's own threads and no memory cap, and details are measured too. The
        row has `fits=False` if the process exceeded the memory cap in `settings`.
        """
        details = settings is None
        settings = settings or settings_for_device(self.section)
        frequency = psutil.cpu_freq()
        row = LatencyRow(
            name=system.name, role=system.role, runtime=system.runtime, precision=system.precision,
            size_mb=system.size_mb, parameters_m=system.parameters_m, load_average=os.getloadavg()[0],
            cpu_mhz=frequency.current if frequency else None, peak_rss_mb=0.0, clip_ms=None, rtf=None,
        )  # fmt: skip
        task = replace(self.task_of(system, settings), details=details)
        try:
            timing = time_system(task, system.name, settings.memory_mb)
        except MemoryCapReached as error:
            return replace(row, fits=False, reason=str(error), peak_rss_mb=error.reached_mb)
        return replace(row, **vars(timing))

    def drift(self, baseline: System, first: LatencyRow) -> float:
        """Measure the baseline again; return its median clip time over that in `first`, the earlier measurement."""
        again = self.measure(baseline, settings_for_device(self.section))
        assert again.clip_ms is not None, "without a memory cap every system fits"
        assert first.clip_ms is not None, "without a memory cap every system fits"
        return again.clip_ms.p50 / first.clip_ms.p50

    def task_of(self, system: System, settings: MeasurementSettings) -> MeasuringTask:
        """Return the task of a process that measures `system`."""
        return MeasuringTask(
            folder=str(system.folder), runtime=system.runtime, precision=system.precision, threads=settings.threads,
            clips=self.clips, runs=self.section.runs, warmup=self.section.warmup, tokens=self.section.tokens,
            language=self.language, task=self.task,
        )  # fmt: skip

    def settle(
        self, systems: Sequence[System], rows: Sequence[LatencyRow], budgets: Sequence[DeviceBudget],
        settings: MeasurementSettings | None, drift: float,
    ) -> list[LatencyRow]:  # fmt: skip
        """Measure again the artefacts whose verdict by one of `budgets` could change; return all rows.

        Args:
            systems: The systems in `rows`, and possibly others.
            rows: Measurements with the settings of the budgets' devices.
            budgets: The budgets that `rows` are judged by.
            settings: Settings to measure with, as for `measure`.
            drift: Median clip time of the baseline at the end of the benchmark over that at its start.
        """
        by_name = {system.name: system for system in systems}
        candidates = budget_candidates({row.name: row.role for row in rows})
        settled = []
        for row in rows:
            judged = row.name in candidates and any(within_noise(budget, row, drift) for budget in budgets)
            if judged and self.section.repeats and row.measurements is None:
                again = [self.measure(by_name[row.name], settings) for _ in range(self.section.repeats)]
                row = merge_measurements([row, *again])
            settled.append(row)
        return settled

    def speedups(self, systems: Sequence[System]) -> list[Interval]:
        """Return for each system the baseline's time of a clip over its own; the first system is the baseline.

        Each is the median over clips that both processes play alternately, with its 95 % bootstrap interval.
        """
        baseline, *others = systems
        settings = settings_for_device(self.section)
        intervals = [Interval(1.0, 1.0, 1.0)]
        with open_player(self.task_of(baseline, settings), baseline.name) as baseline_player:
            for system in track(others, "speed-up", unit="system"):
                with open_player(self.task_of(system, settings), system.name) as player:
                    ratios = time_ratios(baseline_player, player, len(self.clips), self.section.turns)
                intervals.append(median_interval(ratios))
        return intervals

    def concurrency(self, system: System) -> list[ConcurrencyRow]:
        """Measure a process that serves `system` to several clients, once for each number in `benchmark.clients`."""
        settings = settings_for_device(self.section)
        command, rows = [sys.executable, "-m", "eval.latency.concurrency"], []
        for clients in self.section.clients:
            task = replace(self.task_of(system, settings), clients=clients)
            output = run_task(command, system.name, asdict(task), settings)
            load = parse_json(ClientLoad, output, f"benchmark: clients of {system.name}")
            rows.append(ConcurrencyRow(name=system.name, **vars(load)))
        return rows


def emulated_devices(
    section: BenchmarkSection, budget: BudgetSection | None, cores: int
) -> dict[MeasurementSettings, list[str]]:
    """Return the settings to emulate, with the names of their devices, that differ from the benchmark's own settings.

    Devices with more threads than this machine has `cores` are emulated with `cores` threads.
    """
    devices: dict[MeasurementSettings, list[str]] = {}
    for name, wanted in emulated_settings(section, budget).items():
        settings = wanted._replace(threads=min(wanted.threads, cores))
        if settings != settings_for_device(section):
            devices.setdefault(settings, []).append(name)
    return devices


def settle_emulated(
    runner: BenchmarkRunner, systems: Sequence[System], run: EmulatedRun, budgets: Sequence[DeviceBudget], drift: float
) -> EmulatedRun:
    """Apply `BenchmarkRunner.settle` to the rows of one emulated run, with the budgets of its devices."""
    judging = [budget for budget in budgets if budget.name in run.devices]
    settings = MeasurementSettings(run.threads, run.memory_mb)
    return replace(run, variants=runner.settle(systems, run.variants, judging, settings, drift))


def merge_measurements(rows: Sequence[LatencyRow]) -> LatencyRow:
    """Combine several measurements of one system: the row with the median `clip_p95_ms`, with the range of all rows.

    If the system did not fit in one of the measurements, that row is returned unchanged.
    """
    if over_cap := next((row for row in rows if not row.fits), None):
        return over_cap
    measurements = [
        RepeatedMeasurement(row.clip_ms.p50, row.clip_ms.p95, row.rtf, row.peak_rss_mb)
        for row in rows
        if row.clip_ms is not None and row.rtf is not None
    ]
    by_latency = sorted(range(len(rows)), key=lambda index: measurements[index].clip_p95_ms)
    ranges = {
        key: (min(values), max(values))
        for key in vars(measurements[0])
        for values in [[getattr(measurement, key) for measurement in measurements]]
    }
    return replace(rows[by_latency[(len(rows) - 1) // 2]], noise=ranges, measurements=measurements)
