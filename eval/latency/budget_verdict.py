"""Judge each artefact against the budget of a device, and say whether the measurement is precise enough to decide."""

from collections.abc import Mapping, Sequence

from eval.latency.latency_rows import LatencyRow
from eval.latency.verdict_rows import (
    ArtefactFigures,
    ArtefactVerdict,
    DeviceVerdict,
    Emulation,
    LimitKey,
    LimitVerdict,
)
from eval.scoring.accuracy_rows import Interval, PairedDifference
from recipes.schema.device_budget import DeviceBudget

_LIMITS: tuple[tuple[LimitKey, str, str], ...] = (
    ("clip_p95_ms", "clip latency p95", "ms"),
    ("rtf", "real-time factor", ""),
    ("peak_rss_mb", "peak memory", "MB"),
    ("size_mb", "size on disk", "MB"),
    ("wer_increase", "WER above the teacher", "points"),
)
"""Key, name for the reader and unit."""


def measured_interval(
    figures: ArtefactFigures, key: LimitKey, wer_increase: Interval | None, drift: float, factor: float
) -> Interval | None:
    """Return one figure with the range in which a repeated measurement is expected; None if it was not measured.

    For times the range covers the passes through the clips and at least the drift of the baseline, or all measurements
    if the system was measured again; value and range are multiplied by `factor`. For the WER difference it is the 95 %
    interval.
    """
    if key == "wer_increase":
        return wer_increase
    value: float | None = getattr(figures, key)
    if value is None:
        return None
    low, high = figures.ranges.get(key, (value, value))
    if key not in ("clip_p95_ms", "rtf"):
        return Interval(value, low, high)
    if not figures.repeated:
        ratio = max(drift, 1 / drift)
        low, high = min(low, value / ratio), max(high, value * ratio)
    return Interval(value * factor, low * factor, high * factor)


def judge_artefact(
    budget: DeviceBudget,
    figures: ArtefactFigures,
    wer_increase: Interval | None,
    drift: float = 1.0,
    factor: float = 1.0,
) -> ArtefactVerdict:
    """Compare one artefact with every limit of `budget`.

    A figure that was not measured misses its limit. A figure whose range contains the limit is judged by its value and
    is not safe.

    Args:
        budget: The device's limits.
        figures: Measured or predicted speed, memory and size.
        wer_increase: Mean WER minus the teacher's, in points; None if it was not measured.
        drift: Median clip time of the baseline at the end of the benchmark over that at its start.
        factor: Time on the device over time on the measuring machine.
    """
    limits = []
    if not figures.fits:
        limits.append(
            LimitVerdict(
                "memory cap", "MB", budget.memory_mb or 0.0, figures.peak_rss_mb, None, None, kept=False, safe=True,
                note=f"does not fit: {figures.reason}", key="memory_cap",
            )
        )  # fmt: skip
    for key, name, unit in _LIMITS:
        allowed: float | None = getattr(budget.limits, key)
        if allowed is not None:
            figure = measured_interval(figures, key, wer_increase, drift, factor)
            limits.append(_judge_limit(key, name, unit, allowed, figure))
    # A limit that is missed beyond doubt settles the verdict, however close the others are.
    safe = all(limit.safe for limit in limits) or any(limit.safe and not limit.kept for limit in limits)
    return ArtefactVerdict(figures.name, all(limit.kept for limit in limits), safe, limits, figures.fits)


def _judge_limit(key: LimitKey, name: str, unit: str, allowed: float, figure: Interval | None) -> LimitVerdict:
    if figure is None:
        return LimitVerdict(name, unit, allowed, None, None, None, kept=False, safe=True, note="", key=key)
    safe, note = not figure.low <= allowed < figure.high, ""
    if not safe:
        interval = "95 % interval" if key == "wer_increase" else "measurement noise"
        limit = f"{allowed:g} {unit}".strip()
        note = f"uncertain: the limit of {limit} is within the {interval}, {figure.low:.3g} to {figure.high:.3g}"
    kept = figure.value <= allowed
    return LimitVerdict(name, unit, allowed, figure.value, figure.low, figure.high, kept, safe, note, key)


def within_noise(budget: DeviceBudget, row: LatencyRow, drift: float) -> bool:
    """Return whether measuring the artefact again could change its verdict; the WER is not considered."""
    limits = budget.limits.model_copy(update={"wer_increase": None})
    return not judge_artefact(budget.model_copy(update={"limits": limits}), ArtefactFigures.of(row), None, drift).safe


def budget_candidates(roles: Mapping[str, str]) -> list[str]:
    """Return the names of the systems that a budget judges: the exports, or the student if nothing was exported.

    `roles` maps the name of each system to `teacher`, `student` or `export`.
    """
    exports = [name for name, role in roles.items() if role == "export"]
    return exports or [name for name, role in roles.items() if role == "student"]


def judge_device(
    budget: DeviceBudget, variants: Sequence[LatencyRow], wer_increases: Mapping[str, PairedDifference],
    required: bool, *, drift: float = 1.0, emulation: Emulation | None = None,
) -> DeviceVerdict:  # fmt: skip
    """Judge the exports, or the student if nothing was exported, and name the cheapest artefact that passes.

    Args:
        budget: The device's limits.
        variants: What was measured with the settings of the device.
        wer_increases: By system its mean WER minus the teacher's, in points.
        required: Whether the run fails if the budget is missed.
        drift: Median clip time of the baseline at the end of the benchmark over that at its start.
        emulation: How the measuring machine stands in for the device; None if it is the device.
    """
    names = budget_candidates({row.name: row.role for row in variants})
    rows = {row.name: row for row in variants if row.name in names}
    factor = (emulation.factor if emulation else None) or 1.0
    verdicts = [
        judge_artefact(budget, ArtefactFigures.of(row), wer_increases.get(name), drift, factor)
        for name, row in rows.items()
    ]
    passing = [verdict.artefact for verdict in verdicts if verdict.kept]
    cost = {name: (row.size_mb, row.clip_p50_ms or 0.0) for name, row in rows.items()}
    return DeviceVerdict(
        budget.name, budget.description, budget.source, required, bool(passing),
        min(passing, key=cost.__getitem__, default=None), emulation, verdicts,
    )  # fmt: skip


def describe_emulation(budget: DeviceBudget, cpu: str, threads: int, memory_mb: float | None) -> Emulation | None:
    """Describe how a machine stands in for the device; None if `budget` names no other processor.

    Args:
        budget: The device.
        cpu: Processor of the measuring machine.
        threads: Threads that are used there.
        memory_mb: Memory cap there in MB; None for none.
    """
    if budget.cpu is None:
        return None
    scale = budget.scale if budget.scale is not None and budget.scale.cpu in cpu else None
    allowed = budget.threads or threads
    fewer = f" (the device may use {allowed}, more than this machine has)" if allowed > threads else ""
    cap = f" and at most {memory_mb:g} MB of memory" if memory_mb is not None else ""
    text = f"An emulation: measured on {cpu} with {threads} thread{'s' * (threads > 1)}{fewer}{cap}. "
    text += f"The device has another processor, {budget.cpu}; "
    if scale is not None:
        text += f"times are multiplied by {scale.factor:g} ({scale.source})."
    else:
        text += "no speed ratio between the two is published, so times are those of the measuring machine."
    return Emulation(cpu, budget.cpu, threads, allowed, memory_mb, scale.factor if scale else None, text)
