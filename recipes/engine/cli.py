"""`sottovoce`: runs each stage of a recipe as its own process, and imports none of them.

sottovoce run recipes/demo/recipe.yaml                 what is missing or stale, the rest is skipped
sottovoce run recipes/demo/recipe.yaml --from train    from a stage on, whatever is there
sottovoce check recipes/demo/recipe.yaml               validate and estimate; runs nothing
sottovoce stages recipes/demo/recipe.yaml              what stands where
sottovoce transcribe runs/demo/train/model a.wav       text of audio files
sottovoce serve runs/demo/export/model                 a page that runs the student in a browser
sottovoce compare runs/a runs/b                        finished runs side by side
sottovoce plan --budget recipes/budgets/laptop.yaml --teacher tiny   the largest students that fit, before any training
sottovoce release recipes/demo/recipe.yaml             a finished run as a folder for others; --push to the Hub
sottovoce schema                                       JSON schema of the recipe, for editors
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import yaml

from recipes.core.errors import MESSAGE_FILE_VARIABLE, UserError, run_main
from recipes.core.machine import ONE_BLAS_THREAD
from recipes.engine.check import check_recipe
from recipes.engine.flow import STAGE_BY_NAME, Stage, active_stages
from recipes.engine.freshness import read_record, stage_freshness
from recipes.schema.recipe import Recipe, json_schema, load_recipe

_HOME = Path(__file__).resolve().parent.parent.parent
"""Where the stage files are: the checkout, or site-packages."""

ONE_CPU_PROCESS = {
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "use_cpu": True, "num_machines": 1,
    "num_processes": 1, "machine_rank": 0, "mixed_precision": "no",
}  # fmt: skip
"""What `recipes/accelerate/cpu.yaml` says."""


MODULE_COMMANDS = {
    "transcribe": ("eval.transcribe", "text of audio files"),
    "serve": ("eval.serve", "try a student in a browser"),
    "compare": ("eval.compare", "finished runs side by side, regressions flagged"),
    "plan": ("distill.plan", "the largest students that fit a budget, before training"),
    "release": ("distill.release", "a finished run as a folder for others, or pushed"),
}
"""Commands that are modules of their own and read their own arguments."""


def main() -> None:
    """The console script."""
    run_main(_main)


def _main() -> None:
    given, rest = parse_arguments(sys.argv[1:])
    given.function(given, rest)


def parse_arguments(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the command line says, its `function` among it, and what is left for a module of its own."""
    parser = argparse.ArgumentParser(
        prog="sottovoce", description="Audio in, a small student proven to fit a device out.",
        epilog="Exit status: 0 done, 1 failed to run, 2 bad input, 3 a required budget is missed.",
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("run", _run, "run the stages that are missing or stale"),
        ("check", _check, "validate a recipe and estimate parameters, memory and disk"),
        ("stages", _stages, "show what stands where"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("recipe", type=Path, help="recipe file, such as recipes/demo/recipe.yaml")
        command.add_argument("overrides", nargs="*", help="section.key=value")
        command.set_defaults(function=function, first=None, last=None)
        if name == "run":
            command.add_argument(
                "--from", dest="first", choices=STAGE_BY_NAME, metavar="STAGE", help="rerun from this stage on"
            )
            command.add_argument(
                "--until", dest="last", choices=STAGE_BY_NAME, metavar="STAGE", help="stop after this stage"
            )
    for name, (module, text) in MODULE_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False).set_defaults(function=_module(module))
    commands.add_parser("schema", help="print the recipe's JSON schema").set_defaults(
        function=lambda _given, _rest: print(json_schema())
    )
    given, rest = parser.parse_known_args(words)
    if "overrides" in given:  # argparse stops filling a list of positionals at the first option; the rest is ours
        given.overrides += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest and given.function in (_run, _check, _stages):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return given, rest


def select_stages(given: argparse.Namespace) -> tuple[Recipe, list[Stage]]:
    """The recipe and its stages from the first to the last that the command names.

    Raises UserError for what is wrong with the command, the recipe or its paths and shapes, before anything runs.
    """
    recipe = load_recipe(given.recipe, given.overrides)
    flow = active_stages(recipe)
    names = [spec.name for spec in flow]
    for option in (given.first, given.last):
        if option is not None and option not in names:
            raise UserError(f"stage {option}: not in this recipe; it has {', '.join(names)}")
    check_recipe(recipe)
    return recipe, flow[: names.index(given.last) + 1] if given.last else flow


def _run(given: argparse.Namespace, _rest: list[str]) -> None:
    recipe, flow = select_stages(given)
    if given.first is not None:
        names = [spec.name for spec in active_stages(recipe)]
        for name in names[names.index(given.first) :]:
            (recipe.root / name / "stage.json").unlink(missing_ok=True)
    ran = 0
    for spec in flow:
        now = stage_freshness(recipe, spec.name)
        if now.current:
            print(f"{spec.name:<10} up to date", flush=True)
            continue
        print(f"{spec.name:<10} {now.reason}: running", flush=True)
        started = time.monotonic()
        _start(recipe, spec, given)
        print(f"{spec.name:<10} done in {time.monotonic() - started:.0f} s", flush=True)
        ran += 1
    if "report" in (spec.name for spec in flow):
        _conclude(recipe, ran)


def _start(recipe: Recipe, spec: Stage, given: argparse.Namespace) -> None:
    """Run a stage as a process of its own; its exit status becomes ours."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(_HOME), os.environ.get("PYTHONPATH", "")]).rstrip(":")
    }
    program, *rest = spec.command.split()
    if program == "accelerate":
        _, script, *options = rest
        launcher, variables = _launcher(recipe.launch)
        environment = variables | environment
        command = [sys.executable, *launcher, str(_HOME / script), *options]
    else:
        launcher, command = [], [sys.executable, *rest]
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder) / "message"
        environment |= {MESSAGE_FILE_VARIABLE: str(message)}
        process = subprocess.Popen([*command, str(given.recipe), *given.overrides], env=environment)
        code = _wait(process, launched=bool(launcher))
        left = json.loads(message.read_text()) if message.is_file() else {}
    if code == 0:
        return
    again = shlex.join(["sottovoce", "run", str(given.recipe), *given.overrides])
    # accelerate's launcher hides a stage's exit status, and says much after a process's own message.
    cause = f": {left.get('message', f'a process ended with exit status {code}')}" if launcher else ""
    print(f"{spec.name:<10} failed{cause}; `{again}` goes on from here", file=sys.stderr)
    sys.exit(left.get("status", code if code in (1, 2, 3) else 1))


def _wait(process: subprocess.Popen[bytes], *, launched: bool) -> int:
    """Its exit status. SIGTERM goes on to the stage below any launcher, which saves and ends; then we do."""

    def tell(*_: object) -> None:
        below = psutil.Process(process.pid)
        for stage in below.children() if launched else [below]:
            stage.terminate()

    before = signal.signal(signal.SIGTERM, tell)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _launcher(launch: Path | None) -> tuple[list[str], dict[str, str]]:
    """Python's arguments that start a stage's processes, none where it needs no launcher, and environment variables."""
    # `accelerate launch` itself, without two seconds of importing its other commands.
    accelerate = ["-m", "accelerate.commands.launch", "--quiet"]
    if launch is None:
        return accelerate, {}
    settings = yaml.safe_load(launch.read_text())
    processes = settings.get("num_processes", 1)
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes))}
    if settings.get("distributed_type") == "MULTI_CPU":
        # accelerate 1.15 starts one process here, whatever num_processes says: the others it leaves to MPI.
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return torchrun, threads | {"ACCELERATE_USE_CPU": "true"}
    if settings == ONE_CPU_PROCESS:
        # Nothing to launch but this variable: the launcher imports torch, two seconds and 230 MB for as long as we run.
        return [], threads | {"ACCELERATE_USE_CPU": "true"}
    return [*accelerate, "--config_file", str(launch)], threads


def _conclude(recipe: Recipe, ran: int) -> None:
    """The short table, the report's path, and exit status 3 for a missed budget."""
    folder = recipe.root / "report"
    if not ran:
        print("nothing to do: every stage is up to date")
    record = read_record(folder)
    assert record is not None
    print((folder / "summary.txt").read_text().rstrip())
    print(f"report: {folder / 'report.html'}")
    if read_record(recipe.root / "release"):
        print(f"release: {recipe.root / 'release'}")
    if record["metrics"].get("budget_kept") is False and recipe.budget is not None and recipe.budget.required:
        print(f"budget {recipe.budget.device.stem}: missed; see the report for each limit", file=sys.stderr)
        sys.exit(3)


def _check(given: argparse.Namespace, _rest: list[str]) -> None:
    recipe = load_recipe(given.recipe, given.overrides)
    for line in check_recipe(recipe):
        print(line)


def _stages(given: argparse.Namespace, _rest: list[str]) -> None:
    recipe = load_recipe(given.recipe, given.overrides)
    for spec in active_stages(recipe):
        print(f"{spec.name:<10} {stage_freshness(recipe, spec.name).reason:<40} {recipe.root / spec.name}")


def _module(name: str) -> Callable[[argparse.Namespace, list[str]], None]:
    """Starts a module as a process with the arguments left, and ends as it does."""

    def start(_given: argparse.Namespace, rest: list[str]) -> None:
        environment = ONE_BLAS_THREAD | os.environ
        sys.exit(subprocess.run([sys.executable, "-m", name, *rest], env=environment, check=False).returncode)

    return start


if __name__ == "__main__":
    main()
