"""Stage `quality`: decide which labels are used for training, and record why the others are not.

    python -m data_prep.quality recipes/demo/recipe.yaml quality.max_wer=0.2

Reads finished labels only and takes seconds, so a threshold can be changed without labelling again. Writes
quality.parquet (id, kept, reason and all signals of each label) and quality.json (counts, histogram and examples for
the report).
"""

from data_prep.labels.label_store import read_labels
from data_prep.labels.quality_checks import judge_label, measure_label, normalizer_by_language, write_verdicts
from data_prep.labels.quality_summary import summarise_quality
from recipes.core.atomic_files import write_json
from recipes.core.errors import RunError, run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments


def main() -> None:
    """Measure each label, compare it with the limits, and write the verdicts and their summary."""
    recipe, command = parse_stage_arguments("quality")
    with open_stage(recipe, "quality", command) as stage:
        # 1. Measure the signals of each label.
        labels = read_labels(recipe.root / "labels")
        normalizers = normalizer_by_language(recipe.quality.normalizer, resolve_model_folder(recipe.teacher.model))
        signals = [measure_label(label, normalizers(label.language)) for label in labels]
        # 2. Compare them with the limits of the recipe.
        guess_logprob = recipe.labels.fallback_logprob if recipe.labels else -1.0
        verdicts = [
            judge_label(label, measured, recipe.quality, guess_logprob)
            for label, measured in zip(labels, signals, strict=True)
        ]
        write_verdicts(verdicts, stage.folder)
        # 3. Summarize them for the report.
        summary = summarise_quality(labels, verdicts)
        write_json(stage.folder / "quality.json", summary)
        if not any(verdict.kept for label, verdict in zip(labels, verdicts, strict=True) if label.split == "train"):
            raise RunError(
                f"quality: no label of the train split is kept; they were dropped for {summary['dropped']}; loosen "
                "quality.*"
            )
        stage.finish(counts={"kept": summary["kept"], "dropped": summary["dropped"]}, metrics=dict(summary["rates"]))


if __name__ == "__main__":
    run_main(main)
