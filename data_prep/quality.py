"""Stage `quality`: which labels training uses, and why not the others.

    python -m data_prep.quality recipes/demo/recipe.yaml quality.max_wer=0.2

Reads finished labels only, in seconds: a threshold is changed without labelling again. Writes quality.parquet (id,
kept, reason and every signal) and quality.json (counts, histogram, examples for the report).
"""

from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.labels.label_store import read_labels
from data_prep.labels.quality_checks import judge_label, measure_label, normalizer_by_language, summarise_quality
from recipes.core.atomic_files import write_json
from recipes.core.errors import RunError, run_main
from recipes.engine.stage_folder import open_stage, parse_stage_arguments


def main() -> None:
    """Measure each label, judge it, show the doubtful ones."""
    recipe, command = parse_stage_arguments("quality")
    with open_stage(recipe, "quality", command) as work:
        labels = read_labels(recipe.root / "labels")
        normalizers = normalizer_by_language(recipe)
        guess = recipe.labels.fallback_logprob if recipe.labels else -1.0
        verdicts = [
            judge_label(label, measure_label(label, normalizers(label.language)), recipe.quality, guess)
            for label in labels
        ]
        rows = [{"id": item.id, "kept": item.kept, "reason": item.reason, **asdict(item.signals)} for item in verdicts]
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), work.folder / "quality.parquet")
        summary = summarise_quality(labels, verdicts)
        write_json(work.folder / "quality.json", summary)
        if not any(item.kept for label, item in zip(labels, verdicts, strict=True) if label.split == "train"):
            raise RunError(f"quality: no label of the train split is kept: {summary['dropped']}; loosen quality.*")
        work.finish(counts={"kept": summary["kept"], "dropped": summary["dropped"]}, metrics=summary["rates"])


_SCHEMA = pa.schema(
    [("id", pa.string()), ("kept", pa.bool_()), ("reason", pa.string()), ("edits", pa.int32()), ("units", pa.int32()),
     ("mean_logprob", pa.float64()), ("compression_ratio", pa.float64()), ("repeats", pa.int32()),
     ("characters_per_second", pa.float64()), ("no_speech_prob", pa.float64())]
)  # fmt: skip


if __name__ == "__main__":
    run_main(main)
