"""Render the report's data as one HTML page that needs nothing else."""

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.latency.latency_rows import LatencyReport, LatencyRow, OperatorCount
from eval.reporting.plots import Point, curves, histogram, scatter, smooth
from eval.reporting.report_data import ReportData
from eval.reporting.report_sections import TrainingSummary
from eval.reporting.verdict_text import format_figure, verdict_sentence, verdict_word
from eval.scoring.accuracy_report import AccuracyReport
from eval.scoring.accuracy_rows import NoiseScore


def render_page(report: ReportData, clips: Mapping[str, str]) -> str:
    """Return the page, which makes no requests to any server. Sections that are None are left out.

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
    return environment.get_template("report.html").render(
        vars(report),
        budgets=report.budgets,
        clips=clips,
        verdict=verdict_sentence(report),
        plots={name: Markup(svg) for name, svg in draw_plots(report).items()},
    )


def placement_text(rows: Sequence[OperatorCount] | None) -> str:
    """Return how many operators run in which place with which element types, the most frequent first."""
    counts: Counter[str] = Counter()
    for row in rows or []:
        counts[f"{row.place} {row.precision}".strip()] += row.count
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "not reported by the runtime"


def highlight_differences(reference: str, text: str) -> Markup:
    """Return `text` as HTML: wrong or added words in `<ins>`, words that are missing from it in `<del>`."""
    expected, actual = reference.lower().split(), text.lower().split()
    parts: list[Markup] = []
    for kind, first, last, start, end in difflib.SequenceMatcher(None, expected, actual, autojunk=False).get_opcodes():
        missing, added = " ".join(expected[first:last]), " ".join(actual[start:end])
        if kind == "equal":
            parts.append(Markup("{}").format(added))
            continue
        if missing:
            parts.append(Markup("<del>{}</del>").format(missing))
        if added:
            parts.append(Markup("<ins>{}</ins>").format(added))
    return Markup(" ").join(parts) or Markup("<em>nothing</em>")


def draw_plots(report: ReportData) -> dict[str, str]:
    """Return the plots as SVG by name; empty text for a plot whose figures are missing."""
    plots = dict.fromkeys(("latency", "size", "quality", "noise"), "")
    accuracy, latency = report.accuracy, report.latency
    if accuracy and latency:
        by_latency = _points(accuracy, latency, lambda row: row.clip_p50_ms)
        by_size = _points(accuracy, latency, lambda row: row.size_mb)
        plots["latency"] = scatter(by_latency, "median time of a clip, ms", "WER, %", "p1")
        plots["size"] = scatter(by_size, "size on disk, MB", "WER, %", "p2")
    if accuracy and accuracy.noise:
        series = [(system.name, system.role, *_wer_by_snr(system.noise or ())) for system in accuracy.systems]
        plots["noise"] = curves(series, "WER, %", "p6", x_label="signal-to-noise ratio, dB")
    plots |= _training_plots(report.training, "training")
    plots |= _training_plots(report.healing, "healing")
    if report.labels and report.labels.utterances:
        bins = report.labels.quality.histogram
        x_label = "error rate against the reference" if bins.signal == "error rate" else "mean log-probability, nats"
        plots["quality"] = histogram(bins.edges, bins.counts, x_label, "labels", "p5")
    return plots


def _training_plots(run: TrainingSummary | None, stage: str) -> dict[str, str]:
    """Draw the loss and the validation WER over the steps of training or healing."""
    plots = {f"{stage}_loss": "", f"{stage}_wer": ""}
    if run and run.train:
        steps = [line["step"] for line in run.train]
        series = [
            (f"{name}, smoothed", role, steps, smooth([line[key] for line in run.train]))
            for name, key, role in (("loss", "loss", "teacher"), ("CE", "ce", "student"), ("KL", "kl", "export"))
            if any(line[key] > 0 for line in run.train)
        ]
        plots[f"{stage}_loss"] = curves(series, "nats per token", f"{stage}-loss", log=True)
    if run and run.validation:
        validation_steps = [float(point.step) for point in run.validation]
        wer = ("validation WER", "student", validation_steps, [point.wer for point in run.validation])
        plots[f"{stage}_wer"] = curves([wer], "WER, %", f"{stage}-wer")
    return plots


def _points(accuracy: AccuracyReport, latency: LatencyReport, x: Callable[[LatencyRow], float | None]) -> list[Point]:
    wer = {row.name: row.macro_intervals.wer for row in accuracy.systems}
    return [
        Point(row.name, row.role, value, wer[row.name].value, wer[row.name].low, wer[row.name].high)
        for row in latency.variants
        if row.name in wer and (value := x(row)) is not None
    ]


def _wer_by_snr(rows: Sequence[NoiseScore]) -> tuple[list[float], list[float]]:
    noisy = [(row.snr_db, row.wer.value) for row in rows if row.snr_db is not None]
    return [snr_db for snr_db, _ in noisy], [wer for _, wer in noisy]
