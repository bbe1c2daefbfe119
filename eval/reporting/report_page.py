"""The report's figures to one self-contained HTML page."""

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.reporting.plots import Point, curves, histogram, scatter, smooth


def render_page(report: Mapping[str, Any], clips: Mapping[str, str]) -> str:
    """A page without any request to elsewhere. A section whose figures are missing is left out.

    `clips` are audio data URIs by utterance id.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "figure": format_figure,
        "diff": highlight_differences,
        "word": verdict_word,
        "placed": placement_text,
    }
    sections = ("budget", "other_budgets", "accuracy", "latency", "parity", "training", "compression", "healing",
                "labels", "corpus", "student", "beside")  # fmt: skip
    values = {name: report.get(name) for name in sections} | dict(report)
    return environment.get_template("report.html").render(
        **values,
        clips=clips,
        verdict=_verdict(report),
        plots={name: Markup(svg) for name, svg in _plots(report).items()},
    )


def format_figure(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, without exponents for everyday sizes."""
    if value is None:
        return "–"
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}" if value else "0"
    above = len(str(int(abs(value)))) if abs(value) >= 1 else math.floor(math.log10(abs(value))) + 1
    return f"{value:.{max(0, digits - above)}f}"


def verdict_word(item: Mapping[str, Any]) -> str:
    """One verdict in a few words: unsafe where the machine's noise reaches over a limit, open where the WER's does."""
    if any(row["note"].startswith("does not fit") for row in item["rows"]):
        return "does not fit"
    doubts = [] if item["safe"] else [row["limit"] for row in item["rows"] if not row["safe"]]
    said = ["kept" if item["kept"] else "missed"]
    said += ["unsafe"] * any("WER" not in limit for limit in doubts)
    return ", ".join([*said, *["WER open"] * any("WER" in limit for limit in doubts)])


def placement_text(rows: Sequence[Mapping[str, Any]] | None) -> str:
    """Where a model's operators ran and in what: counts, the most frequent first."""
    counts: Counter[str] = Counter()
    for row in rows or []:
        counts[f"{row['place']} {row['precision']}".strip()] += row["count"]
    return ", ".join(f"{count} {what}" for what, count in counts.most_common()) or "the runtime does not tell"


def highlight_differences(reference: str, text: str) -> Markup:
    """The text with words marked that are wrong or added, and those missing from it."""
    wanted, said = reference.lower().split(), text.lower().split()
    parts: list[Markup] = []
    for kind, first, last, start, end in difflib.SequenceMatcher(None, wanted, said, autojunk=False).get_opcodes():
        missing, words = " ".join(wanted[first:last]), " ".join(said[start:end])
        if kind == "equal":
            parts.append(Markup("{}").format(words))
            continue
        if missing:
            parts.append(Markup("<del>{}</del>").format(missing))
        if words:
            parts.append(Markup("<ins>{}</ins>").format(words))
    return Markup(" ").join(parts) or Markup("<em>nothing</em>")


def _verdict(report: Mapping[str, Any]) -> str:
    """One plain sentence on the artefact that matters: the cheapest that passes, else the student's first export."""
    rows = {row["name"]: row for row in (report.get("latency") or {"variants": []})["variants"]}
    systems = {row["name"]: row for row in (report.get("accuracy") or {"systems": []})["systems"]}
    exports = [name for name, row in rows.items() if row["role"] == "export"]
    budget = report.get("budget") or {}
    name = budget.get("cheapest") or (min(exports, key=lambda key: rows[key]["size_mb"]) if exports else None)
    if name is None or name not in rows:
        return ""
    row = rows[name]
    sentence = (
        f"{name} transcribes a clip in {format_figure(row['clip_ms']['p50'])} ms (median; {format_figure(row['speedup'])} times the "
        f"speed of the teacher in PyTorch fp32), is {format_figure(row['size_mb'])} MB on disk and peaks at "
        f"{format_figure(row['peak_rss_mb'])} MB of memory"
    )
    if name in systems:
        teacher = next(system for system in systems.values() if system["role"] == "teacher")
        wer, gap = systems[name]["macro"]["wer"], systems[name]["macro"]["wer"] - teacher["macro"]["wer"]
        side = "above" if gap >= 0 else "below"
        sentence += (
            f"; its WER is {wer:.1f} %, {abs(gap):.1f} points {side} the teacher's {teacher['macro']['wer']:.1f} %"
        )
    return sentence + "."


def _plots(report: Mapping[str, Any]) -> dict[str, str]:
    plots = dict.fromkeys(("latency", "size", "quality", "noise"), "")
    if report.get("accuracy") and report.get("latency"):
        plots["latency"] = scatter(
            _points(report, lambda row: row["clip_ms"]["p50"]), "clip latency p50, ms", "WER, %", "p1"
        )
        plots["size"] = scatter(_points(report, lambda row: row["size_mb"]), "size on disk, MB", "WER, %", "p2")
    if (accuracy := report.get("accuracy")) and accuracy.get("noise"):
        plots["noise"] = curves(
            [
                (system["name"], system["role"], *_against_noise(system["noise"]))
                for system in accuracy["systems"]
            ],
            "WER, %", "p6", x_label="signal-to-noise ratio, dB",
        )  # fmt: skip
    for stage in ("training", "healing"):
        plots |= _learning(report.get(stage), stage)
    if (labels := report.get("labels")) and labels["utterances"]:
        shown = labels["quality"]["histogram"]
        unit = "error rate against the reference" if shown["signal"] == "error rate" else "mean log-probability, nats"
        plots["quality"] = histogram(shown["edges"], shown["counts"], unit, "labels", "p5")
    return plots


def _learning(run: Mapping[str, Any] | None, stage: str) -> dict[str, str]:
    """Loss and validation WER over the steps of training or healing."""
    plots = {f"{stage}_loss": "", f"{stage}_wer": ""}
    if run and run["train"]:
        rows: Sequence[Mapping[str, float]] = run["train"]
        steps = [row["step"] for row in rows]
        plots[f"{stage}_loss"] = curves(
            [
                (f"{name}, smoothed", role, steps, smooth([row[key] for row in rows]))
                for name, key, role in (("loss", "loss", "teacher"), ("CE", "ce", "student"), ("KL", "kl", "export"))
                if any(row[key] > 0 for row in rows)
            ],
            "nats a token", f"{stage}-loss", log=True,
        )  # fmt: skip
    if run and run["validation"]:
        rows = run["validation"]
        plots[f"{stage}_wer"] = curves(
            [("validation WER", "student", [row["step"] for row in rows], [row["wer"] for row in rows])],
            "WER, %",
            f"{stage}-wer",
        )
    return plots


def _points(report: Mapping[str, Any], x: Any) -> list[Point]:
    systems = {row["name"]: row for row in report["accuracy"]["systems"]}
    points = []
    for row in report["latency"]["variants"]:
        if (system := systems.get(row["name"])) is not None:
            wer = system["macro_intervals"]["wer"]
            points.append(Point(row["name"], row["role"], x(row), wer["value"], wer["low"], wer["high"]))
    return points


def _against_noise(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    noisy = [row for row in rows if row["snr_db"] is not None]
    return [row["snr_db"] for row in noisy], [row["wer"]["value"] for row in noisy]
