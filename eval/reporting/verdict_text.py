"""Verdicts and figures as text, for the report, the table at the end of a run, and the model card."""

import math

from eval.latency.latency_rows import LatencyRow
from eval.latency.verdict_rows import ArtefactVerdict, DeviceVerdict
from eval.reporting.report_data import ReportData


def format_figure(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, without an exponent from 1e-4 to 1e6; `–` for None."""
    if value is None:
        return "–"
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}" if value else "0"
    above = len(str(int(abs(value)))) if abs(value) >= 1 else math.floor(math.log10(abs(value))) + 1
    return f"{value:.{max(0, digits - above)}f}"


def verdict_word(verdict: ArtefactVerdict) -> str:
    """Return a verdict in a few words.

    `kept`, `missed` or `does not fit`; followed by `within noise` if a limit is within the measurement noise, and by
    `WER uncertain` if the limit of the WER difference is within its 95 % interval.
    """
    if not verdict.fits:
        return "does not fit"
    words = ["kept" if verdict.kept else "missed"]
    doubtful = [] if verdict.safe else [row.key for row in verdict.rows if not row.safe]
    if any(key != "wer_increase" for key in doubtful):
        words.append("within noise")
    if "wer_increase" in doubtful:
        words.append("WER uncertain")
    return ", ".join(words)


def verdict_sentence(report: ReportData) -> str:
    """Describe in one sentence the artefact that matters: the cheapest that passes, otherwise the smallest export.

    Empty if no latency was measured or nothing was exported.
    """
    row = _artefact_of_interest(report)
    if row is None or row.clip_ms is None:
        return ""
    sentence = (
        f"{row.name} transcribes a clip in {format_figure(row.clip_ms.p50)} ms (median), "
        f"{format_figure(row.speedup)} times as fast as the teacher in PyTorch fp32. It takes "
        f"{format_figure(row.size_mb)} MB on disk and at most {format_figure(row.peak_rss_mb)} MB of memory."
    )
    systems = {system.name: system for system in report.accuracy.systems} if report.accuracy else {}
    if row.name in systems:
        teacher = next(system for system in systems.values() if system.role == "teacher")
        wer, teacher_wer = systems[row.name].macro.wer, teacher.macro.wer
        side = "above" if wer >= teacher_wer else "below"
        sentence += (
            f" Its word error rate is {wer:.1f} %, {abs(wer - teacher_wer):.1f} points {side} the teacher's "
            f"{teacher_wer:.1f} %."
        )
    return sentence


def _artefact_of_interest(report: ReportData) -> LatencyRow | None:
    rows = {row.name: row for row in report.latency.variants} if report.latency else {}
    exports = [row for row in rows.values() if row.role == "export"]
    cheapest = report.budget.cheapest if report.budget else None
    return rows.get(cheapest) if cheapest else min(exports, key=lambda row: row.size_mb, default=None)


def summary_table(report: ReportData) -> str:
    """Return the table that `sottovoce run` prints: the systems with one column per device, and what passes."""
    wer = {row.name: row.macro.wer for row in report.accuracy.systems} if report.accuracy else {}
    rows = {row.name: row for row in report.latency.variants} if report.latency else {}
    names = [f"{budget.device:<16}" for budget in report.budgets]
    head = f"{'':<20} {'WER %':>7} {'clip p50':>10} {'speed-up':>9} {'size':>9} {'memory':>9}  {' '.join(names)}"
    lines = [head.rstrip()]
    for name in dict.fromkeys([*wer, *rows]):
        cells = [f"{name:<20}", f"{wer[name]:7.1f}" if name in wer else f"{'-':>7}"]
        if (row := rows.get(name)) is not None:
            cells += [f"{row.clip_p50_ms:7.1f} ms", f"{row.speedup:8.2f}x", f"{row.size_mb:6.1f} MB",
                      f"{row.peak_rss_mb:6.0f} MB"]  # fmt: skip
        words = [f"{_word_for(budget, name):<16}" for budget in report.budgets]
        lines.append(" ".join([*cells, " " + " ".join(words)]).rstrip())
    for budget in report.budgets:
        outcome = f"cheapest that passes: {budget.cheapest}" if budget.kept else "missed by every artefact"
        lines.append(f"{budget.device}: {outcome}{' (emulated)' if budget.emulation else ''}")
    return "\n".join(lines) + "\n"


def _word_for(budget: DeviceVerdict, name: str) -> str:
    return next((verdict_word(verdict) for verdict in budget.verdicts if verdict.artefact == name), "")
