"""Every command of the documentation is parsed by its own program, and run: here, or by another test that names it."""

import argparse
import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recipes.engine import cli
from recipes.engine.flow import STAGE_BY_NAME, STAGES, active_stages
from recipes.schema.recipe import load_recipe
from tests.conftest import ROOT, TEACHER
from tests.stages.conftest import Run
from tests.stages.test_heal import SHORT
from tests.stages.test_release import SECTION

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
         *sorted((ROOT / "recipes").glob("*/README.md"))]  # fmt: skip
"""Pages whose blocks without a language hold commands. Blocks that name one, such as `text`, hold something else."""

NEW = "sottovoce new mine --teacher openai/whisper-small --audio recordings/ --language en --budget laptop"
"""The documented first command; the fixture `project` runs it as it is."""

RUN_HERE = [
    "sottovoce check recipes/mine/recipe.yaml",
    "sottovoce stages recipes/mine/recipe.yaml",
    "sottovoce transcribe runs/mine/export/model talk.wav --precision int8",
    "sottovoce transcribe runs/demo/export/model talk.wav --precision int8 --format srt",
    "sottovoce transcribe runs/demo/export/model recordings/ --memory-mb 300",
    "sottovoce transcribe runs/demo/export/model hour.wav --long chunked",
    "sottovoce transcribe TEACHER talk.wav --draft STUDENT",
    "sottovoce compare runs/demo runs/other",
    "accelerate launch distill/train.py RECIPE",
    "sottovoce run RECIPE --until quality quality.max_wer=0.2",
    "cp -a runs/alnum-real/{corpus,labels,quality,student,train} runs/alnum-compressed/",
]

ONLY_PARSED = {
    re.escape(NEW): "the fixture runs it",
    r"sottovoce (run|check) recipes/": "complete runs take minutes to hours; `make demo` is one",
    r"sottovoce serve": "needs npm; `make interop` opens the page",
    r"sottovoce transcribe .* --words": "needs a student with marked heads; test_word_times.py makes one",
    r"accelerate config": "asks questions",
    r"python -m (distill\.random_model|tests\.bench)": "needs a vocabulary or real speech; `make bench` runs it",
    r"accelerate launch distill/train.py RECIPE train.quantize_teacher=4": "eight bits are tested, four need a GPU",
    r"accelerate launch distill/train.py RECIPE train.precision=bf16": "for a GPU",
    r"cp -a .* runs/alnum-micro/": "as runs/alnum-compressed/",
    r"pip install": "`make setup` installs the same in a new environment",
}
"""Commands that no test runs, by a pattern for their beginning, with the reason."""


def documented_commands() -> Iterator[tuple[str, str]]:
    """Yield page and command, without comments, of every block that names no language."""
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines() if not language else []:
                if not line.startswith("--8<--") and shlex.split(line, comments=True):
                    yield page.relative_to(ROOT).as_posix(), re.sub(r"\s+#.*", "", re.sub(r" +", " ", line)).strip()


COMMANDS = sorted(set(documented_commands()))


def split_command(command: str) -> list[str]:
    """Return the words of a command, without variables before it, `.venv/bin/` and the placeholder for overrides."""
    words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", command.replace("[section.key=value ...]", "")))
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


@pytest.fixture(scope="module")
def project(finished: Path, speech: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the paths that the pages mention exist."""
    folder = tmp_path_factory.mktemp("documented") / "project"
    runs = folder / "runs"
    shutil.copytree(finished.parent / "runs" / "small", runs / "demo")
    recipe = finished.read_text().replace(str(finished.parent / "runs"), str(runs))
    (folder / "RECIPE").write_text(recipe)
    # Some pages assume a release and labels with logits.
    with_release = recipe.replace("batch_size: 4}", "batch_size: 4, top_k: 8}", 1) + "release: {licence: apache-2.0}\n"
    (folder / "WITH_RELEASE").write_text(with_release)
    clip, cpu = min((speech / "test").glob("*.flac")), ROOT / "recipes" / "accelerate" / "cpu.yaml"
    links = {
        **{runs / name: runs / "demo" for name in ("small", "other", "alnum-real", "mine")},
        **{runs / f"{shape}-shape": runs / "demo" for shape in ("tiny", "base", "small")},
        **{folder / "speech" / name: speech for name in ("an4", "digits", "kathleen", "librispeech-mini")},
        # Links to what is in recipes/, so that a new recipe is not written into the checkout.
        **{folder / "recipes" / path.name: path for path in (ROOT / "recipes").iterdir()},
        **{folder / name: ROOT / name for name in ("data_prep", "distill")},
        **{folder / name: clip for name in ("talk.wav", "hour.wav")},
        folder / "noise": speech, folder / "recordings": speech / "test", runs / "accelerate.yaml": cpu,
        **{folder / name: TEACHER for name in ("TEACHER", "runs/shapes/tiny", "runs/alnum-teacher/train/model")},
        folder / "STUDENT": runs / "demo" / "train" / "model",
    }  # fmt: skip
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    (runs / "alnum-compressed").mkdir()
    made = run(
        "env",
        "-C",
        str(folder),
        f"PYTHONPATH={ROOT}",
        sys.executable,
        "-m",
        "recipes.engine.cli",
        *split_command(NEW)[1:],
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture
def place(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return that folder, as the working directory."""
    monkeypatch.chdir(project)
    for name in ("SPEECH", "NOISE", "SHAPE"):
        monkeypatch.delenv(name, raising=False)
    return project


class Parsed(Exception):
    """Raised with the arguments once a program has parsed its command line, so that nothing runs."""


def parse(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Return what the module's own parser makes of the arguments; load a recipe among them with its overrides."""

    def stop_after(parse_args: Callable[..., argparse.Namespace]) -> Callable[..., None]:
        def parse_and_stop(self: argparse.ArgumentParser, *args: list[str]) -> None:
            raise Parsed(parse_args(self, *args))

        return parse_and_stop

    entry = importlib.import_module(module)
    with monkeypatch.context() as patch, pytest.raises(Parsed) as parsed:
        patch.setattr(sys, "argv", [module, *arguments])
        for method in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, method, stop_after(getattr(argparse.ArgumentParser, method)))
        entry.main()
    args: argparse.Namespace = parsed.value.args[0]
    if getattr(args, "recipe", None):
        load_recipe(args.recipe, getattr(args, "overrides", []))
    return args


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_the_programs_own_parser_accepts_the_command(monkeypatch: pytest.MonkeyPatch, page: str, command: str) -> None:
    program, *arguments = ("WITH_RELEASE" if word == "RECIPE" else word for word in split_command(command))
    if program == "make":
        dry_run = subprocess.run(
            ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert dry_run.returncode == 0, f"{page}: {dry_run.stderr}"
    elif program == "sottovoce":
        args, left = cli.parse_arguments(arguments)
        if arguments[0] in cli.MODULE_COMMANDS:
            parse(cli.MODULE_COMMANDS[arguments[0]][0], left, monkeypatch)
        else:
            cli.select_stages(args)
    elif program == "python":
        assert arguments[0] == "-m", page
        parse(arguments[1], arguments[2:], monkeypatch)
    elif program == "accelerate":
        args = parse("accelerate.commands.accelerate_cli", arguments, monkeypatch)
        if arguments[0] == "launch":
            module = args.training_script.removesuffix(".py").replace("/", ".")
            parse(module, args.training_script_args, monkeypatch)
    else:
        assert command in RUN_HERE or is_only_parsed(command), f"{page}: {program} is not covered; see {__file__}"


@pytest.mark.parametrize("command", RUN_HERE)
def test_the_command_runs(place: Path, run: Run, command: str) -> None:
    program, *arguments = split_command(command)
    modules = {"sottovoce": "recipes.engine.cli", "accelerate": "accelerate.commands.accelerate_cli"}
    started = [sys.executable, "-m", modules[program], *arguments] if program in modules else ["bash", "-c", command]
    done = run("env", "-C", str(place), f"PYTHONPATH={ROOT}", *started)
    assert done.returncode == 0, done.stdout + done.stderr
    if "transcribe" in command:
        assert done.stdout


def is_only_parsed(command: str) -> bool:
    """Return whether there is a reason not to run the command."""
    return any(re.match(pattern, shlex.join(split_command(command))) for pattern in ONLY_PARSED)


def test_the_lists_name_documented_commands_only() -> None:
    documented = {command for _, command in COMMANDS}
    assert set(RUN_HERE) <= documented
    for pattern in ONLY_PARSED:
        assert any(re.match(pattern, shlex.join(split_command(command))) for command in documented), pattern


def test_every_stage_is_run_by_a_test(finished: Path) -> None:
    run = {stage.name for more in ([], SHORT, [SECTION]) for stage in active_stages(load_recipe(finished, more))}
    assert run == set(STAGE_BY_NAME), "the runs of test_flow, test_heal and test_release"


def needed_strings(command: str) -> set[str]:
    """Return what a test that runs the command has to contain: its module, its options and the keys it overrides."""
    previous, strings = "", set()
    for word in split_command(command):
        if previous == "-m" or word in cli.MODULE_COMMANDS or word.startswith("--") or "=" in word:
            strings.add(word.partition("=")[0])
        previous = word
    return strings


def strings_of(file: Path) -> set[str]:
    """Return every string of a test file, and every key that it overrides."""
    nodes = ast.walk(ast.parse(file.read_text()))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return strings | {text.partition("=")[0] for text in strings}


def test_what_does_not_run_here_is_run_by_another_test() -> None:
    stage_commands = {stage.command for stage in STAGES}
    files = [strings_of(file) for file in (ROOT / "tests").rglob("test_*.py") if file != Path(__file__)]
    for page, command in COMMANDS:
        plain = " ".join(word for word in split_command(command) if word != "RECIPE")
        if command in RUN_HERE or is_only_parsed(command) or plain in stage_commands or plain.startswith("make "):
            continue
        assert needed_strings(command), f"{page}: {command}"
        assert any(needed_strings(command) <= strings for strings in files), (
            f"{page}: no test names {needed_strings(command)}"
        )
