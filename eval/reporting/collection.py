"""Collect the report's data from the stage folders of a run."""

import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from eval.latency.budget_verdict import describe_emulation, judge_device
from eval.latency.latency_rows import LatencyReport
from eval.latency.verdict_rows import DeviceVerdict
from eval.reporting.report_data import Machine, OtherRun, ReportData
from eval.reporting.report_sections import (
    CompressionSummary,
    CorpusSummary,
    LabelsSummary,
    ParitySummary,
    StudentShape,
    StudentSummary,
    TrainingSummary,
    ValidationPoint,
)
from eval.scoring.accuracy_report import AccuracyReport
from recipes.core.errors import UserError
from recipes.core.machine import current_commit, describe_machine
from recipes.core.typed_json import parse_json, read_json
from recipes.engine.stage_record import StageRecord, read_record, read_records
from recipes.schema.device_budget import DeviceBudget


def collect_report(
    root: Path, stages: Collection[str], *, name: str, command: str, teacher: str, budgets: Sequence[DeviceBudget] = (),
    required: bool = False, beside: Sequence[Path] = (),
) -> ReportData:  # fmt: skip
    """Read every result of a run.

    Args:
        root: Folder of the run.
        stages: Names of the stages that the run has.
        name: Name of the run.
        command: The command that makes the whole run.
        teacher: `teacher.model` of the recipe.
        budgets: The device budgets of the recipe.
        required: Whether the run fails if the first budget is missed.
        beside: Folders of other finished runs to show next to this one.

    Raises UserError if a run in `beside` has no finished benchmark, or if a file has other fields than expected.
    """
    records = read_records(root, stages)
    accuracy = read_json(AccuracyReport, root / "eval" / "wer.json") if "eval" in stages else None
    latency = read_json(LatencyReport, root / "benchmark" / "latency.json") if "benchmark" in stages else None
    verdicts = judge_devices(budgets, latency, accuracy, required) if latency else []
    compression = root / "compress" / "compression.json"
    return ReportData(
        name=name,
        date=time.strftime("%Y-%m-%d"),
        command=command,
        commit=current_commit(),
        machine=Machine(**describe_machine()),
        budget=verdicts[0] if verdicts else None,
        other_budgets=verdicts[1:],
        accuracy=accuracy,
        latency=latency,
        beside=[read_other_run(run) for run in beside],
        parity=read_json(ParitySummary, root / "export" / "parity.json"),
        training=read_training(root / "train", records["train"]) if "train" in stages else None,
        compression=read_json(CompressionSummary, compression) if "compress" in stages else None,
        healing=read_training(root / "heal", records["heal"]) if "heal" in stages else None,
        labels=read_labels_summary(root, records["labels"], records["quality"]) if "labels" in stages else None,
        corpus=read_corpus(root / "corpus", records["corpus"]),
        student=read_student(root / "student", records["student"], teacher),
    )


def judge_devices(
    budgets: Sequence[DeviceBudget], latency: LatencyReport, accuracy: AccuracyReport | None, required: bool
) -> list[DeviceVerdict]:
    """Judge the systems by every budget, with what was measured for its device; only the first may be required."""
    wer_increases = accuracy.wer_increases() if accuracy else {}
    verdicts = []
    for index, budget in enumerate(budgets):
        run = latency.emulated_run(budget.name)
        threads, memory_mb = (run.threads, run.memory_mb) if run else (latency.threads, None)
        emulation = describe_emulation(budget, latency.cpu, threads, memory_mb)
        rows, drift = latency.rows_for_device(budget.name), latency.baseline_drift
        verdicts.append(
            judge_device(budget, rows, wer_increases, required and index == 0, drift=drift, emulation=emulation)
        )
    return verdicts


def read_other_run(run: Path) -> OtherRun:
    """Read what the report shows of another run. Raises UserError if the run has no finished benchmark."""
    record = read_record(run / "student")
    if record is None or read_record(run / "benchmark") is None:
        raise UserError(f"beside: expected a finished benchmark in {run}, found none; `sottovoce run` its recipe first")
    student = parse_json(StudentShape, record["metrics"], str(run / "student"))
    return OtherRun(run.name, student, read_json(LatencyReport, run / "benchmark" / "latency.json"))


def read_training(folder: Path, record: StageRecord) -> TrainingSummary:
    """Read the folder of the stage `train` or `heal`."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return TrainingSummary(
        command=record["command"],
        steps=record["metrics"]["steps"],
        seconds=round(sum(line.get("seconds", 0.0) for line in lines), 1),
        best_step=record["metrics"]["best"].get("step"),
        train=[line for line in lines if "loss" in line],
        validation=[
            ValidationPoint(line["step"], line["validation_wer"], line["validation_loss"])
            for line in lines
            if "validation_wer" in line
        ],
    )


def read_labels_summary(root: Path, labels: StageRecord, quality: StageRecord) -> LabelsSummary:
    """Read the records of the stages `labels` and `quality`, and quality.json, from the folder of a run."""
    checks = json.loads((root / "quality" / "quality.json").read_text())
    summary = {
        "command": labels["command"], **labels["counts"], **labels["metrics"], "seconds": labels["seconds"],
        "quality": {**checks, "command": quality["command"]},
    }  # fmt: skip
    return parse_json(LabelsSummary, summary, f"{root / 'labels'} and {root / 'quality'}")


def read_corpus(folder: Path, record: StageRecord) -> CorpusSummary:
    """Read the folder of the stage `corpus`."""
    refused = json.loads((folder / "refused.json").read_text())
    summary = {**record["metrics"], "refused": refused, "command": record["command"]}
    return parse_json(CorpusSummary, summary, str(folder))


def read_student(folder: Path, record: StageRecord, teacher: str) -> StudentSummary:
    """Read the record of the stage `student`; `teacher` is `teacher.model` of the recipe."""
    return parse_json(
        StudentSummary, {**record["metrics"], "teacher": teacher, "command": record["command"]}, str(folder)
    )
