"""Stage `report`: write all results of a run as one HTML page and one JSON file.

    python -m eval.report recipes/demo/recipe.yaml

Reads only the folders of the other stages. Writes report.json (`eval.reporting.report_data`), report.html, and
summary.txt, the table that `sottovoce run` prints.
"""

import shlex
from dataclasses import asdict

from eval.reporting.audio_players import audio_players
from eval.reporting.collection import collect_report
from eval.reporting.report_page import render_page
from eval.reporting.verdict_text import summary_table
from recipes.core.atomic_files import write_json
from recipes.core.errors import run_main
from recipes.engine.flow import active_stages
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.device_budget import load_budgets


def main() -> None:
    """Collect the results, judge the budgets, and write the three files."""
    recipe, command = parse_stage_arguments("report")
    with open_stage(recipe, "report", command) as work:
        # 1. All results, and the verdict on each budget.
        report = collect_report(
            recipe.root, [stage.name for stage in active_stages(recipe)], name=recipe.name,
            command=shlex.join(["sottovoce", "run", *shlex.split(command)[3:]]), teacher=recipe.teacher.model,
            budgets=load_budgets(recipe.budget), required=recipe.budget is not None and recipe.budget.required,
            beside=recipe.beside,
        )  # fmt: skip
        # 2. The same as JSON, as a page with audio of the sample transcripts, and as a short table.
        samples = report.accuracy.samples if report.accuracy else ()
        players = audio_players(recipe.root / "corpus", [sample.id for sample in samples])
        write_json(work.folder / "report.json", asdict(report))
        (work.folder / "report.html").write_text(render_page(report, players))
        (work.folder / "summary.txt").write_text(summary_table(report))
        work.finish(metrics={"budget_kept": report.budget.kept if report.budget else None})


if __name__ == "__main__":
    run_main(main)
