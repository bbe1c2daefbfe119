"""TODO: eval.reporting.collection."""

import json
import time
from pathlib import Path
from typing import Any

from eval.latency.budget_verdict import describe_emulation, judge_device, variants_for_device, wer_gaps
from eval.reporting.report_page import verdict_word
from recipes.core.errors import UserError
from recipes.core.machine import current_commit, describe_machine
from recipes.engine.flow import active_stages
from recipes.engine.freshness import read_record
from recipes.schema.device_budget import load_budgets
from recipes.schema.recipe import Recipe


def collect_report(recipe: Recipe, command: str) -> dict[str, Any]:
    """Every figure of the report, read from the folders of the stages this recipe has."""
    root = recipe.root
    present = {spec.name for spec in active_stages(recipe)}
    records = {name: read_record(root / name) or {} for name in present}
    accuracy = _read(root / "eval" / "wer.json") if "eval" in present else None
    latency = _read(root / "benchmark" / "latency.json") if "benchmark" in present else None
    judged = budget_verdicts(recipe, latency, accuracy) if latency is not None else []
    return {
        "name": recipe.name,
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "commit": current_commit(),
        "machine": describe_machine(),
        "budget": judged[0] if judged else None,
        "other_budgets": judged[1:],
        "accuracy": accuracy,
        "latency": latency,
        "beside": [_other(run) for run in recipe.beside],
        "parity": _read(root / "export" / "parity.json"),
        "training": _training(root / "train", records["train"]) if "train" in present else None,
        "compression": _read(root / "compress" / "compression.json") if "compress" in present else None,
        "healing": _training(root / "heal", records["heal"]) if "heal" in present else None,
        "labels": _labels(records["labels"], root / "quality") if "labels" in present else None,
        "corpus": {**records["corpus"]["metrics"], "refused": _read(root / "corpus" / "refused.json"),
                   "command": records["corpus"]["command"]},
        "student": {"teacher": recipe.teacher.model, **records["student"]["metrics"],
                    "command": records["student"]["command"]},
    }  # fmt: skip


def budget_verdicts(recipe: Recipe, latency: dict[str, Any], accuracy: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Every budget of the recipe over what was measured for its device; only the first may be required."""
    return [
        judge_device(
            budget, variants_for_device(budget, latency), wer_gaps(accuracy), recipe.budget.required and index == 0,
            drift=latency["baseline_drift"], emulation=describe_emulation(budget, latency),
        )
        for index, budget in enumerate(load_budgets(recipe))
        if recipe.budget is not None
    ]  # fmt: skip


def _other(run: Path) -> dict[str, Any]:
    """What the report shows of another run; UserError where it was not measured."""
    record = read_record(run / "benchmark")
    if record is None:
        raise UserError(f"beside: expected a finished benchmark in {run}, found none; `sottovoce run` its recipe first")
    student = read_record(run / "student")
    assert student is not None, "a benchmark rests on a student"
    return {"name": run.name, "student": student["metrics"], "latency": _read(run / "benchmark" / "latency.json")}


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


def _training(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "command": record["command"],
        "steps": record["metrics"]["steps"],
        "seconds": round(sum(line.get("seconds", 0.0) for line in lines), 1),
        "best_step": record["metrics"]["best"].get("step"),
        "train": [line for line in lines if "loss" in line],
        "validation": [
            {"step": line["step"], "loss": line["validation_loss"], "wer": line["validation_wer"]}
            for line in lines
            if "validation_wer" in line
        ],
    }


def _labels(record: dict[str, Any], quality: Path) -> dict[str, Any]:
    judged = read_record(quality) or {}
    return {
        "command": record["command"], **record["counts"], **record["metrics"], "seconds": record["seconds"],
        "quality": {**_read(quality / "quality.json"), "command": judged["command"]},
    }  # fmt: skip


def summary_table(report: dict[str, Any]) -> str:
    """The short table that ends a run, a column a device, and what passes."""
    wer = {row["name"]: row["macro"]["wer"] for row in (report["accuracy"] or {"systems": []})["systems"]}
    rows = {row["name"]: row for row in (report["latency"] or {"variants": []})["variants"]}
    judged = [report["budget"], *report["other_budgets"]] if report["budget"] else []
    said = [{item["artefact"]: verdict_word(item) for item in budget["verdicts"]} for budget in judged]
    columns = [f"{budget['device']:<16}" for budget in judged]
    head = f"{'':<20} {'WER %':>7} {'clip p50':>10} {'speed-up':>9} {'size':>9} {'memory':>9}  {' '.join(columns)}"
    lines = [head.rstrip()]
    for name in dict.fromkeys([*wer, *rows]):
        row = rows.get(name)
        cells = [f"{name:<20}", f"{wer[name]:7.1f}" if name in wer else f"{'-':>7}"]
        if row:
            cells += [f"{row['clip_ms']['p50']:7.1f} ms", f"{row['speedup']:8.2f}x", f"{row['size_mb']:6.1f} MB",
                      f"{row['peak_rss_mb']:6.0f} MB"]  # fmt: skip
        lines.append(" ".join([*cells, " " + " ".join(f"{each.get(name, ''):<16}" for each in said)]).rstrip())
    for budget in judged:
        passes = f"cheapest that passes: {budget['cheapest']}" if budget["kept"] else "missed by every artefact"
        lines.append(f"{budget['device']}: {passes}{' (emulated)' if budget['emulation'] else ''}")
    return "\n".join(lines) + "\n"
