"""Stage `report`: one HTML page and one JSON from the stage files alone.

python -m eval.report recipes/demo/recipe.yaml
"""

import shlex

from eval.reporting.audio_players import audio_players
from eval.reporting.collection import collect_report, summary_table
from eval.reporting.report_page import render_page
from recipes.core.atomic_files import write_json
from recipes.core.errors import run_main
from recipes.engine.stage_folder import open_stage, parse_stage_arguments


def main() -> None:
    """Collect, judge, render."""
    recipe, command = parse_stage_arguments("report")
    with open_stage(recipe, "report", command) as work:
        report = collect_report(recipe, shlex.join(["sottovoce", "run", *shlex.split(command)[3:]]))
        write_json(work.folder / "report.json", report)
        samples = [sample["id"] for sample in (report["accuracy"] or {"samples": []})["samples"]]
        (work.folder / "report.html").write_text(render_page(report, audio_players(recipe.root / "corpus", samples)))
        (work.folder / "summary.txt").write_text(summary_table(report))
        budget = report["budget"]
        work.finish(metrics={"budget_kept": budget["kept"] if budget else None})


if __name__ == "__main__":
    run_main(main)
