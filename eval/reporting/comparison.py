"""Compare the systems of finished runs with those of the first run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.audio.utterances import read_utterances
from eval.reporting.report_data import ReportData, read_report
from eval.scoring.accuracy_rows import Interval
from eval.scoring.error_rates import count_errors, normalizer
from eval.scoring.resampling import macro_bootstrap
from recipes.core.errors import UserError
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.stage_record import read_record
from recipes.schema.teacher_section import TeacherSection

TOLERANCE = 0.1
"""Relative difference of speed-up, memory and size that is not a regression; repeated benchmarks of the same artefact
on a quiet machine differ by less."""


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run and its report."""

    folder: Path
    report: ReportData


@dataclass(frozen=True)
class SystemFigures:
    """The figures that are compared; None where a run did not measure one."""

    wer: float | None
    """Mean WER over the test sets, in percent."""
    clip_p50_ms: float | None
    """Median time of a clip, in milliseconds."""
    speedup: float | None
    """Speed-up over the teacher of the same run."""
    peak_rss_mb: float | None
    """Peak resident memory, in MB."""
    size_mb: float | None
    """Size on disk, in MB."""


@dataclass(frozen=True)
class ComparisonRow(SystemFigures):
    """One system of one run."""

    run: str
    """Name of the run."""
    folder: str
    """Folder of the run."""
    system: str
    wer_difference: tuple[float, float, float] | None = None
    """Mean WER minus that in the first run, with the lower and upper end of its 95 % interval, in points."""
    regressions: Sequence[str] = ()
    """What got worse, for the reader."""
    note: str = ""
    """Why there is no `wer_difference`, for the reader."""


@dataclass(frozen=True)
class RunComparison:
    """All systems of all runs."""

    baseline: str
    """Name of the first run."""
    rows: Sequence[ComparisonRow]


def open_run(folder: Path) -> FinishedRun:
    """Read a run. Raises UserError if `folder` has no finished report."""
    file = folder / "report" / "report.json"
    if read_record(folder / "report") is None or not file.is_file():
        raise UserError(f"run {folder}: expected a finished report, found none; `sottovoce run` its recipe first")
    return FinishedRun(folder, read_report(file))


def compare_runs(runs: Sequence[FinishedRun]) -> RunComparison:
    """Compare every system of every run with the system of the same name in the first run."""
    first, rows = runs[0], []
    before = system_figures(first.report)
    for run in runs:
        for system, figures in system_figures(run.report).items():
            row = ComparisonRow(**vars(figures), run=run.report.name, folder=str(run.folder), system=system)
            rows.append(row if run is first else _compare_system(first, run, row, before.get(system)))
    return RunComparison(first.report.name, rows)


def system_figures(report: ReportData) -> dict[str, SystemFigures]:
    """Return the figures of every system in a report."""
    accuracy = {row.name: row for row in report.accuracy.systems} if report.accuracy else {}
    latency = {row.name: row for row in report.latency.variants} if report.latency else {}
    figures = {}
    for name in dict.fromkeys([*accuracy, *latency]):
        row = latency.get(name)
        figures[name] = SystemFigures(
            wer=accuracy[name].macro.wer if name in accuracy else None,
            clip_p50_ms=row.clip_p50_ms if row else None,
            speedup=row.speedup if row and row.fits else None,
            peak_rss_mb=row.peak_rss_mb if row else None,
            size_mb=row.size_mb if row else None,
        )
    return figures


def _compare_system(
    first: FinishedRun, run: FinishedRun, row: ComparisonRow, before: SystemFigures | None
) -> ComparisonRow:
    """Return `row` with the differences to `before`, the same system in the first run."""
    if before is None:
        return replace(row, note="new")
    difference = None
    if before.wer is not None and row.wer is not None:
        difference = wer_difference(first, run, row.system)
    regressions = [f"WER {difference.value:+.1f}"] if difference and difference.low > 0 else []
    for name, old, new, sign in (
        ("speed", before.speedup, row.speedup, -1),
        ("memory", before.peak_rss_mb, row.peak_rss_mb, 1),
        ("size", before.size_mb, row.size_mb, 1),
    ):
        if old and new and sign * (new / old - 1) > TOLERANCE:
            regressions.append(f"{name} {100 * (new / old - 1):+.0f} %")
    return replace(
        row,
        wer_difference=(difference.value, difference.low, difference.high) if difference else None,
        regressions=regressions,
        note="" if difference or row.wer is None else "other test sets",
    )


def wer_difference(first: FinishedRun, run: FinishedRun, system: str) -> Interval | None:
    """Return the mean WER minus that in the first run, in points, paired by utterance.

    None if the two runs did not score the same utterances with the same normaliser.
    """
    before, after = _texts_by_set(first, system), _texts_by_set(run, system)
    references = [{name: [pair[0] for pair in pairs] for name, pairs in texts.items()} for texts in (before, after)]
    if references[0] != references[1]:
        return None
    counts = [
        [count_errors(truth, [pair[1] for pair in texts[name]]) for name, truth in references[0].items()]
        for texts in (after, before)
    ]
    return macro_bootstrap(*counts, resamples=1000, seed=0)


def _texts_by_set(run: FinishedRun, system: str) -> dict[str, list[tuple[str, str]]]:
    """Return by test set the normalised reference and hypothesis of each utterance."""
    record, accuracy = read_record(run.folder / "eval"), run.report.accuracy
    assert record is not None, "a report with accuracy has a finished stage eval"
    assert accuracy is not None, "only called for runs with accuracy"
    teacher = TeacherSection.model_validate(record["recipe"]["teacher"])
    normalize = normalizer(accuracy.normalizer, resolve_model_folder(teacher.model))
    scored = [utterance for utterance in read_utterances(run.folder / "corpus", "test") if utterance.text]
    hypotheses = json.loads((run.folder / "eval" / f"hypotheses-{system}.json").read_text())
    texts: dict[str, list[tuple[str, str]]] = {}
    for utterance, hypothesis in zip(scored, hypotheses, strict=True):
        texts.setdefault(utterance.source, []).append((normalize(utterance.text or ""), normalize(hypothesis)))
    return texts


def comparison_table(comparison: RunComparison) -> str:
    """Return the comparison as an aligned table."""
    head = f"{'run':<24} {'system':<20} {'WER %':>7} {'minus first, points':>20} {'clip p50':>10} {'speed-up':>9} "
    lines = [head + f"{'memory':>9} {'size':>9}  regressions"]
    for row in comparison.rows:
        difference = "{:+.1f} ({:+.1f} to {:+.1f})".format(*row.wer_difference) if row.wer_difference else ""
        lines.append(
            f"{row.run:<24} {row.system:<20} {_cell(row.wer, 7, 1)} {difference:>20} {_cell(row.clip_p50_ms, 7, 1)} ms "
            f"{_cell(row.speedup, 8, 2)}x {_cell(row.peak_rss_mb, 6, 0)} MB {_cell(row.size_mb, 6, 1)} MB"
            f"  {', '.join(row.regressions) or row.note}".rstrip()
        )
    return "\n".join(lines)


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
