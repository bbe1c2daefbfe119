"""The `sottovoce` command. It runs each stage of a recipe as a process of its own and imports none of them.

sottovoce new mine --teacher MODEL --audio FOLDER      write a recipe for your teacher, audio and machine
sottovoce run recipes/demo/recipe.yaml                 run the stages that are missing or out of date
sottovoce run recipes/demo/recipe.yaml --from train    rerun a stage and all later ones
sottovoce check recipes/demo/recipe.yaml               validate the recipe and estimate its cost; runs nothing
sottovoce stages recipes/demo/recipe.yaml              list the stages and their state
sottovoce transcribe runs/demo/train/model a.wav       transcribe audio files
sottovoce serve runs/demo/export/model                 open a page that runs the student in a browser
sottovoce compare runs/a runs/b                        compare finished runs
sottovoce plan --budget recipes/budgets/laptop.yaml --teacher tiny   find the largest students that fit, before training
sottovoce release recipes/demo/recipe.yaml             write a release folder; --push uploads it to the Hub
sottovoce schema                                       print the JSON schema of a recipe, for editors
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from recipes.core.errors import BudgetMissed, UserError, run_main
from recipes.core.logs import log
from recipes.core.machine import ONE_BLAS_THREAD
from recipes.engine.check import check_recipe
from recipes.engine.flow import STAGE_BY_NAME, Stage, active_stages
from recipes.engine.freshness import stage_freshness
from recipes.engine.launching import run_stage
from recipes.engine.stage_record import RECORD_FILE, read_record
from recipes.schema.recipe import Recipe, json_schema, load_recipe

Command = Callable[[argparse.Namespace, list[str]], None]
"""A command: takes the parsed arguments and those that were not recognized."""

MODULE_COMMANDS = {
    "new": ("data_prep.new", "write a recipe for your teacher, audio and machine"),
    "transcribe": ("eval.transcribe", "transcribe audio files"),
    "serve": ("eval.serve", "try a student in a browser"),
    "compare": ("eval.compare", "compare finished runs and flag regressions"),
    "plan": ("distill.plan", "find the largest students that fit a budget, before training"),
    "release": ("distill.release", "write a release folder of a finished run, or upload it to the Hub"),
}
"""Module and help text of the commands that are modules of their own and parse their own arguments."""


def main() -> None:
    """Run the console script `sottovoce`."""
    run_main(_main)


def _main() -> None:
    args, unrecognized = parse_arguments(sys.argv[1:])
    args.function(args, unrecognized)


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line.

    Returns the arguments, with the command to call as `function`, and the arguments for a module that parses its own.
    """
    parser = _parser()
    args, unrecognized = parser.parse_known_args(argv)
    if "overrides" in args:
        # argparse stops filling a list of positional arguments at the first option: overrides that follow are left over
        args.overrides += [argument for argument in unrecognized if not argument.startswith("-")]
        unrecognized = [argument for argument in unrecognized if argument.startswith("-")]
        if unrecognized:
            parser.error(f"unrecognized arguments: {' '.join(unrecognized)}")
    return args, unrecognized


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sottovoce", description="Distill a Whisper model into a small student that fits a device.",
        epilog="Exit status: 0 success, 1 the run failed, 2 invalid input, 3 a required budget is missed.",
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("run", _run, "run the stages that are missing or out of date"),
        ("check", _check, "validate a recipe and estimate parameters, memory and disk space"),
        ("stages", _stages, "list the stages of a recipe and their state"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("recipe", type=Path, help="recipe file, such as recipes/demo/recipe.yaml")
        command.add_argument("overrides", nargs="*", help="section.key=value")
        command.set_defaults(function=function, first=None, last=None)
        if name == "run":
            for option, destination, purpose in (
                ("--from", "first", "rerun this stage and all later ones"),
                ("--until", "last", "stop after this stage"),
            ):
                command.add_argument(option, dest=destination, choices=STAGE_BY_NAME, metavar="STAGE", help=purpose)
    for name, (module, text) in MODULE_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False).set_defaults(function=_module_command(module))
    commands.add_parser("schema", help="print the JSON schema of a recipe").set_defaults(function=_schema)
    return parser


def select_stages(args: argparse.Namespace) -> tuple[Recipe, list[Stage]]:
    """Load and check the recipe, and return it with its stages up to `--until`.

    Raises UserError if the recipe, its paths and shapes, or a stage named on the command line are invalid.
    """
    recipe = load_recipe(args.recipe, args.overrides)
    stages = active_stages(recipe)
    names = [stage.name for stage in stages]
    for name in (args.first, args.last):
        if name is not None and name not in names:
            raise UserError(f"stage {name}: expected a stage of this recipe ({', '.join(names)})")
    check_recipe(recipe)
    return recipe, stages[: names.index(args.last) + 1] if args.last else stages


def _run(args: argparse.Namespace, _unrecognized: list[str]) -> None:
    recipe, stages = select_stages(args)
    if args.first is not None:
        _discard_from(recipe, args.first)
    finished = [_run_if_outdated(recipe, stage, args) for stage in stages]
    if "report" in (stage.name for stage in stages):
        _show_results(recipe, any_stage_ran=any(finished))


def _discard_from(recipe: Recipe, first: str) -> None:
    """Remove the records of the stage `first` and of all later stages, so that they run again."""
    names = [stage.name for stage in active_stages(recipe)]
    for name in names[names.index(first) :]:
        (recipe.root / name / RECORD_FILE).unlink(missing_ok=True)


def _run_if_outdated(recipe: Recipe, stage: Stage, args: argparse.Namespace) -> bool:
    """Run a stage unless it is current, and return whether it ran. Exits with the status of a stage that fails."""
    freshness = stage_freshness(recipe, stage.name)
    if freshness.current:
        print(f"{stage.name:<10} up to date", flush=True)
        return False
    print(f"{stage.name:<10} {freshness.reason}: running", flush=True)
    started = time.monotonic()
    arguments = [str(args.recipe), *args.overrides]
    ended = run_stage(stage, recipe.launch, arguments)
    if ended.status != 0:
        cause = f": {ended.message}" if ended.message else ""
        again = shlex.join(["sottovoce", "run", *arguments])
        log.error(f"{stage.name:<10} failed{cause}; run `{again}` to continue from here")
        sys.exit(ended.status)
    print(f"{stage.name:<10} done in {time.monotonic() - started:.0f} s", flush=True)
    return True


def _show_results(recipe: Recipe, *, any_stage_ran: bool) -> None:
    """Print the summary table and the paths of the results. Raises BudgetMissed if a required budget is missed."""
    folder, release = recipe.root / "report", recipe.root / "release"
    if not any_stage_ran:
        print("nothing to do: every stage is up to date")
    print((folder / "summary.txt").read_text().rstrip())
    print(f"report: {folder / 'report.html'}")
    if read_record(release):
        print(f"release: {release}")
    record = read_record(folder)
    assert record is not None
    if record["metrics"].get("budget_kept") is False and recipe.budget is not None and recipe.budget.required:
        raise BudgetMissed(f"budget {recipe.budget.device.stem}: missed; the report shows each limit")


def _check(args: argparse.Namespace, _unrecognized: list[str]) -> None:
    for line in check_recipe(load_recipe(args.recipe, args.overrides)):
        print(line)


def _stages(args: argparse.Namespace, _unrecognized: list[str]) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    for stage in active_stages(recipe):
        print(f"{stage.name:<10} {stage_freshness(recipe, stage.name).reason:<40} {recipe.root / stage.name}")


def _schema(_args: argparse.Namespace, _unrecognized: list[str]) -> None:
    print(json_schema())


def _module_command(module: str) -> Command:
    """Return a command that runs `module` as a process with the unrecognized arguments, and exits with its status."""

    def run_module(_args: argparse.Namespace, arguments: list[str]) -> None:
        environment = ONE_BLAS_THREAD | os.environ
        completed = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, check=False)
        sys.exit(completed.returncode)

    return run_module


if __name__ == "__main__":
    main()
