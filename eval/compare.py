"""`sottovoce compare RUN RUN...`: finished runs side by side, each beside the first, regressions flagged.

Accuracy is compared utterance by utterance where both runs scored the same test set with the same normaliser; a system
regresses where the paired 95 % interval lies wholly above zero. Latency is compared as the ratio to the teacher of the
same run, since machines differ; it and memory and size regress by more than `TOLERANCE`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.audio.utterances import read_utterances
from eval.scoring.error_rates import Interval, count_errors, macro_bootstrap, normalizer
from recipes.core.errors import RunError, UserError, run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.freshness import read_record
from recipes.schema.teacher_section import TeacherSection

TOLERANCE = 0.1
"""Share; repeated benchmarks of one artefact on a quiet machine lie within it."""


@dataclass(frozen=True)
class Run:
    """What a comparison reads of `runs/NAME`."""

    folder: Path
    report: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """UserError where the folder holds no finished report."""
        file = folder / "report" / "report.json"
        if read_record(folder / "report") is None or not file.is_file():
            raise UserError(f"run {folder}: expected a finished report, found none; `sottovoce run` its recipe first")
        return cls(folder, json.loads(file.read_text()))

    def systems(self, part: str, rows: str) -> dict[str, Mapping[str, Any]]:
        """Rows of the report's accuracy or latency by the system's name."""
        return {row["name"]: row for row in (self.report[part] or {rows: []})[rows]}

    def texts(self, system: str) -> dict[str, list[tuple[str, str]]]:
        """By test set the normalised references and what the system said, utterances in the corpus's order."""
        record = read_record(self.folder / "eval")
        assert record is not None
        teacher = TeacherSection.model_validate(record["recipe"]["teacher"])
        normalize = normalizer(self.report["accuracy"]["normalizer"], resolve_model_folder(teacher.model))
        scored = [item for item in read_utterances(self.folder / "corpus", "test") if item.text]
        said = json.loads((self.folder / "eval" / f"hypotheses-{system}.json").read_text())
        found: dict[str, list[tuple[str, str]]] = {}
        for item, text in zip(scored, said, strict=True):
            found.setdefault(item.source, []).append((normalize(item.text or ""), normalize(text)))
        return found


def compare_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Every system of every run beside the system of its name in the first run."""
    first = runs[0]
    rows = []
    for run in runs:
        accuracy, latency = run.systems("accuracy", "systems"), run.systems("latency", "variants")
        for name in dict.fromkeys([*accuracy, *latency]):
            figures = _figures(accuracy.get(name), latency.get(name))
            row = {"run": run.report["name"], "folder": str(run.folder), "system": name, **figures}
            if run is not first:
                row |= _beside(first, run, name, figures)
            rows.append(row)
    return {"baseline": first.report["name"], "rows": rows}


def _figures(accuracy: Mapping[str, Any] | None, latency: Mapping[str, Any] | None) -> dict[str, float | None]:
    fits = latency is not None and latency["clip_ms"] is not None
    return {
        "wer": accuracy["macro"]["wer"] if accuracy else None,
        "clip_p50_ms": latency["clip_ms"]["p50"] if latency and fits else None,
        "speedup": latency["speedup"] if latency and fits else None,
        "peak_rss_mb": latency["peak_rss_mb"] if latency else None,
        "size_mb": latency["size_mb"] if latency else None,
    }


def _beside(first: Run, run: Run, name: str, figures: Mapping[str, float | None]) -> dict[str, Any]:
    """The paired WER difference, and in words what got worse."""
    old = _figures(first.systems("accuracy", "systems").get(name), first.systems("latency", "variants").get(name))
    if all(value is None for value in old.values()):
        return {"wer_difference": None, "regressions": [], "note": "new"}
    difference = _wer_difference(first, run, name) if old["wer"] is not None and figures["wer"] is not None else None
    worse = [f"WER {difference.value:+.1f}"] if difference and difference.low > 0 else []
    for key, text, sign in (("speedup", "speed", -1), ("peak_rss_mb", "memory", 1), ("size_mb", "size", 1)):
        before, now = old[key], figures[key]
        if before and now and sign * (now / before - 1) > TOLERANCE:
            worse.append(f"{text} {100 * (now / before - 1):+.0f} %")
    note = "" if difference or figures["wer"] is None else "other test sets"
    interval = [difference.value, difference.low, difference.high] if difference else None
    return {"wer_difference": interval, "regressions": worse, "note": note}


def _wer_difference(first: Run, run: Run, name: str) -> Interval | None:
    """Macro WER above the first run's, points; None where the two did not score the same utterances."""
    old, new = first.texts(name), run.texts(name)
    references = [{source: [pair[0] for pair in pairs] for source, pairs in texts.items()} for texts in (old, new)]
    if references[0] != references[1]:
        return None
    counted = [
        [count_errors(truth, [pair[1] for pair in texts[source]]) for source, truth in references[0].items()]
        for texts in (new, old)
    ]
    return macro_bootstrap(*counted, resamples=1000, seed=0)


def comparison_table(result: Mapping[str, Any]) -> str:
    """The comparison as aligned text."""
    head = f"{'run':<24} {'system':<20} {'WER %':>7} {'to first, points':>20} {'clip p50':>10} {'speed-up':>9} "
    lines = [head + f"{'memory':>9} {'size':>9}  regressions"]
    for row in result["rows"]:
        gap = row.get("wer_difference")
        said = ", ".join(row.get("regressions", [])) or row.get("note", "")
        lines.append(
            f"{row['run']:<24} {row['system']:<20} {_cell(row['wer'], 7, 1)} "
            f"{'{:+.1f} ({:+.1f} to {:+.1f})'.format(*gap) if gap else '':>20} {_cell(row['clip_p50_ms'], 7, 1)} ms "
            f"{_cell(row['speedup'], 8, 2)}x {_cell(row['peak_rss_mb'], 6, 0)} MB {_cell(row['size_mb'], 6, 1)} MB"
            f"  {said}".rstrip()
        )
    return "\n".join(lines)


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def main() -> None:
    """Print the table or its JSON."""
    parser = argparse.ArgumentParser(prog="sottovoce compare", description="Finished runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, such as runs/demo; the first is the baseline")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--strict", action="store_true", help="end with exit status 1 where anything regressed")
    given = parser.parse_args()
    if len(given.runs) < 2:
        raise UserError(f"runs: expected at least two run folders, found {len(given.runs)}; such as runs/a runs/b")
    result = compare_runs([Run.open(folder) for folder in given.runs])
    print(json.dumps(result, indent=2) if given.format == "json" else comparison_table(result))
    sys.stdout.flush()
    if given.strict and (worse := [row for row in result["rows"] if row.get("regressions")]):
        raise RunError(f"{len(worse)} systems regressed: {', '.join(row['system'] for row in worse)}")


if __name__ == "__main__":
    run_main(main)
