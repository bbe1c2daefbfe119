"""The verdict on each artefact against a device's budget, and how far this machine's noise lets it be trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.schema.device_budget import DeviceBudget

Variant = Mapping[str, Any]
"""A row of latency.json: figures, or `fits: false` where it was ended by its device's memory cap."""
Interval = Mapping[str, float]
"""`value`, `low` and `high`."""

_ROWS = (
    ("clip_p95_ms", "clip latency p95", "ms"),
    ("rtf", "real-time factor", ""),
    ("peak_rss_mb", "peak memory", "MB"),
    ("size_mb", "size on disk", "MB"),
    ("wer_increase", "WER above the teacher", "points"),
)
_TIMES = ("clip_p95_ms", "rtf")


def measured_interval(variant: Variant, key: str, gap: Interval | None, drift: float, factor: float) -> Interval | None:
    """One figure of a variant and the band in which it would be found again; None where it was not measured.

    Of times the band is what passes through the clips differed by, and at least the baseline's drift; where the variant
    was measured again, what the measurements differed by. Of the WER difference it is the 95 % interval.
    """
    if key == "wer_increase":
        return gap
    value = variant["clip_ms"]["p95"] if key == "clip_p95_ms" and variant["clip_ms"] else variant.get(key)
    if value is None:
        return None
    low, high = (variant.get("noise") or {}).get(key, (value, value))
    if key not in _TIMES:
        return {"value": value, "low": low, "high": high}
    if not variant.get("measurements"):
        apart = max(drift, 1 / drift)
        low, high = min(low, value / apart), max(high, value * apart)
    return {"value": value * factor, "low": low * factor, "high": high * factor}


def judge_artefact(
    budget: DeviceBudget, variant: Variant, gap: Interval | None, drift: float = 1.0, factor: float = 1.0
) -> dict[str, Any]:
    """One artefact against every limit. A figure that was not measured is not kept; one whose band holds the limit is
    judged by its value and called unsafe.
    """
    rows = []
    if not variant.get("fits", True):
        rows.append({"limit": "memory cap", "unit": "MB", "allowed": budget.memory_mb, "kept": False, "safe": True,
                     "measured": variant["peak_rss_mb"], "low": None, "high": None,
                     "note": f"does not fit: {variant['reason']}"})  # fmt: skip
    for key, limit, unit in _ROWS:
        if (allowed := getattr(budget.limits, key)) is None:
            continue
        found = measured_interval(variant, key, gap, drift, factor)
        row: dict[str, Any] = {"limit": limit, "unit": unit, "allowed": allowed}
        if found is None:
            rows.append(row | {"measured": None, "low": None, "high": None, "kept": False, "safe": True, "note": ""})
            continue
        low, high = found["low"], found["high"]
        safe = not low <= allowed < high
        doubt, said = ("open", "95 % interval") if key == "wer_increase" else ("unsafe", "measured")
        note = "" if safe else f"{doubt}: limit {f'{allowed:g} {unit}'.strip()}, {said} {low:.3g} to {high:.3g}"
        rows.append(row | {"measured": found["value"], "low": low, "high": high, "kept": found["value"] <= allowed,
                           "safe": safe, "note": note})  # fmt: skip
    return {
        "artefact": variant["name"], "kept": all(row["kept"] for row in rows), "rows": rows,
        # A limit that is surely missed settles it, however near the others are.
        "safe": all(row["safe"] for row in rows) or any(row["safe"] and not row["kept"] for row in rows),
    }  # fmt: skip


def within_noise(budget: DeviceBudget, variant: Variant, drift: float) -> bool:
    """Whether the machine's noise reaches over one of the limits, so that another measurement is worth its time."""
    limits = budget.limits.model_copy(update={"wer_increase": None})
    return not judge_artefact(budget.model_copy(update={"limits": limits}), variant, None, drift)["safe"]


def budget_candidates(variants: Sequence[Variant]) -> list[Variant]:
    """What a budget judges: the exports, or the student where nothing was exported."""
    return [row for row in variants if row["role"] == "export"] or [row for row in variants if row["role"] == "student"]


def judge_device(
    budget: DeviceBudget, variants: Sequence[Variant], gaps: Mapping[str, Interval], required: bool,
    *, drift: float = 1.0, emulation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Verdicts on the candidates; the cheapest that passes is named: smallest on disk, then fastest."""
    judged = budget_candidates(variants)
    factor = (emulation or {}).get("factor") or 1.0
    verdicts = [judge_artefact(budget, row, gaps.get(row["name"]), drift, factor) for row in judged]
    cost = {row["name"]: (row["size_mb"], (row["clip_ms"] or {}).get("p50")) for row in judged}
    passing = [item["artefact"] for item in verdicts if item["kept"]]
    return {
        "device": budget.name, "description": budget.description, "source": budget.source, "required": required,
        "kept": bool(passing), "cheapest": min(passing, key=cost.__getitem__, default=None),
        "emulation": emulation, "verdicts": verdicts,
    }  # fmt: skip


def describe_emulation(budget: DeviceBudget, latency: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the measuring machine stood for the device, in words too; None where it is the device."""
    if budget.cpu is None:
        return None
    run = emulated_run(budget, latency.get("emulated", []))
    threads, memory_mb = (run or latency)["threads"], run["memory_mb"] if run else None
    cpu, scale = latency.get("cpu", "this machine"), budget.scale
    known = scale is not None and scale.cpu in cpu
    asked = budget.threads or threads
    few = f" (the device may use {asked}, more than this machine has)" if asked > threads else ""
    cap = f" and at most {memory_mb:g} MB of memory" if memory_mb is not None else ""
    text = f"An emulation: measured on {cpu} with {threads} thread{'s' * (threads > 1)}{few}{cap}. "
    text += f"The device's processor, {budget.cpu}, is another; "
    if known and scale is not None:
        text += f"times are multiplied by {scale.factor:g} ({scale.source})."
    else:
        text += "no published factor between the two is known, so times are this machine's own."
    return {"cpu": cpu, "device_cpu": budget.cpu, "threads": threads, "threads_of_device": asked,
            "memory_mb": memory_mb, "factor": scale.factor if known and scale else None, "text": text}  # fmt: skip


def emulated_run(budget: DeviceBudget, emulated: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What was measured as this device asks; None where it asks for nothing but the benchmark's own."""
    return next((run for run in emulated if budget.name in run["devices"]), None)


def variants_for_device(budget: DeviceBudget, latency: Mapping[str, Any]) -> list[Variant]:
    """The rows a device is judged by."""
    run: Mapping[str, Any] = emulated_run(budget, latency.get("emulated", [])) or latency
    return list(run["variants"])


def wer_gaps(accuracy: Mapping[str, Any] | None) -> dict[str, Interval]:
    """Each system's macro WER above the teacher's in points, with its paired 95 % interval."""
    rows = (accuracy or {"systems": []})["systems"]
    return {row["name"]: gap for row in rows if (gap := row["macro_intervals"]["versus_teacher"]) is not None}
