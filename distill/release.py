"""Stage `release`: write a folder with the student, its exports and a model card, to publish; push it to the Hub.

python -m distill.release recipes/NAME/recipe.yaml              write runs/NAME/release
python -m distill.release recipes/NAME/recipe.yaml --push       push it to the repository of the release section
python -m distill.release --verify runs/NAME/release            compare the files with their SHA256SUMS
"""

import argparse
import shlex
from pathlib import Path

from distill.publishing.hub_push import check_pushable, push_release
from distill.publishing.model_card import CardFacts, write_card
from distill.publishing.release_folder import (
    ReleaseSources,
    build_release_folder,
    released_files,
    verify_checksums,
    write_checksums,
)
from eval.reporting.report_data import read_report
from recipes.core.errors import UserError, run_main
from recipes.engine.flow import STAGE_BY_NAME, active_stages, student_folder
from recipes.engine.freshness import stage_freshness
from recipes.engine.stage_folder import open_stage
from recipes.engine.stage_record import read_records
from recipes.schema.recipe import Recipe, load_recipe


def main() -> None:
    """Make, push or verify a release."""
    args = _arguments()
    if args.verify is not None:
        print(f"{args.verify}: all {verify_checksums(args.verify)} files are as released")
        return
    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.release is None:
        raise UserError(
            f"recipe {args.recipe}: expected a release section, found none; add it, or give release.licence=..."
        )
    if args.push:
        rerun = shlex.join(["sottovoce", "run", str(args.recipe), *args.overrides])
        push(recipe, args.repository or recipe.release.repository, rerun)
        return
    command = shlex.join([*STAGE_BY_NAME["release"].command.split(), str(args.recipe), *args.overrides])
    with open_stage(recipe, "release", command) as stage:
        # 1. Link the student and the chosen exports; write the report and the recipe without paths of this machine.
        build_release_folder(release_sources(recipe), stage.folder)
        # 2. Write the model card from the report, the recipe and the records of the stages.
        write_card(card_facts(recipe), stage.folder)
        # 3. Write the checksums of all these files.
        write_checksums(stage.folder)
        files = released_files(stage.folder)
        stage.finish(counts={"files": len(files), "bytes": sum(file.stat().st_size for file in files)})
    print(f"release: {stage.final}")


def push(recipe: Recipe, repository: str | None, rerun: str) -> None:
    """Push the finished release, if it may be published. `rerun` is the command that runs the recipe's stages again."""
    assert recipe.release is not None
    folder, records = (
        recipe.root / "release",
        read_records(recipe.root, [stage.name for stage in active_stages(recipe)]),
    )
    required_budget = recipe.budget.device.stem if recipe.budget and recipe.budget.required else None
    check_pushable(folder, stage_freshness(recipe, "release"), records, required_budget, rerun)
    push_release(folder, recipe.name, repository, private=recipe.release.private)


def release_sources(recipe: Recipe) -> ReleaseSources:
    """Return the results of the recipe's run that its release is made from."""
    assert recipe.release is not None
    return ReleaseSources(
        student=student_folder(recipe), export=recipe.root / "export" / "model", report=recipe.root / "report",
        exported=recipe.export.artefacts, chosen=recipe.release.chosen_artefacts(recipe.export),
        recipe=recipe.model_dump(mode="json"),
    )  # fmt: skip


def card_facts(recipe: Recipe) -> CardFacts:
    """Return what the model card tells about the recipe's run."""
    assert recipe.release is not None
    earlier = [stage.name for stage in active_stages(recipe) if stage.name != "release"]
    return CardFacts(
        name=recipe.name, release=recipe.release, teacher=recipe.teacher, sources=recipe.corpus.sources,
        labels=recipe.labels, train=recipe.train, heal=recipe.heal,
        artefacts=recipe.release.chosen_artefacts(recipe.export), records=read_records(recipe.root, earlier),
        report=read_report(recipe.root / "report" / "report.json"),
    )  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sottovoce release", description=main.__doc__)
    parser.add_argument("recipe", type=Path, nargs="?", help="recipe file, such as recipes/demo/recipe.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--push", action="store_true", help="upload the finished release to the Hub")
    parser.add_argument("--repository", help="Hub id, owner/name; default: release.repository")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="compare a release with its SHA256SUMS")
    args = parser.parse_intermixed_args()
    if (args.recipe is None) == (args.verify is None):
        parser.error("expected a recipe, or --verify FOLDER")
    if args.repository and not args.push:
        parser.error("--repository: only with --push")
    return args


if __name__ == "__main__":
    run_main(main)
