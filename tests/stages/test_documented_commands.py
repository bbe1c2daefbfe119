"""Every command of the pages: read by its own program, and run, here or by a test that names what it says."""

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
NO_COMMANDS = ("WER %", "audio -> corpus -> labels", "recipes/    what to cook")
"""How the blocks begin that show something else."""

HERE = [
    ".venv/bin/sottovoce transcribe runs/demo/export/model runs/demo/corpus/audio/spoken/000000.flac --precision int8",
    "sottovoce transcribe runs/demo/export/model talk.wav --precision int8 --format srt",
    "sottovoce transcribe runs/demo/export/model recordings/ --memory-mb 300",
    "sottovoce transcribe runs/demo/export/model hour.wav --long chunked",
    "sottovoce transcribe TEACHER talk.wav --draft STUDENT",
    "sottovoce compare runs/demo runs/other",
    "accelerate launch distill/train.py RECIPE",
    "sottovoce run RECIPE --until quality quality.max_wer=0.2",
    "cp -a runs/alnum-real/{corpus,labels,quality,student,train} runs/alnum-compressed/",
]
RELEASE = "release: {licence: apache-2.0}\n"
ONLY_READ = {
    r"sottovoce (run|check) recipes/": "the recipes' own runs take minutes to hours; `make demo` is one",
    r"sottovoce serve": "needs npm; `make interop` opens the page",
    r"sottovoce transcribe .* --words": "needs a student whose heads are marked; tests/unit/eval/decoding/test_word_times.py makes them",
    r"accelerate config": "asks questions",
    r"python -m (distill\.shapes|tests\.bench)": "needs Whisper's vocabulary or real speech; `make bench` runs it",
    r"accelerate launch distill/train.py RECIPE train.quantize_teacher=4": "eight bits are tested, four need a GPU",
    r"cp -a .* runs/alnum-micro/": "as runs/alnum-compressed/",
}


def commands() -> Iterator[tuple[str, str]]:
    """Page and command, without comments, of every block that names no language."""
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
            if language or block.lstrip().startswith(NO_COMMANDS):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                if shlex.split(line, comments=True):
                    yield page.relative_to(ROOT).as_posix(), re.sub(r"\s+#.*", "", re.sub(r" +", " ", line)).strip()


COMMANDS = sorted(set(commands()))


def words(command: str) -> list[str]:
    """Its words, without variables before it, the environment's folder, and what stands for options."""
    found = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", command.replace("[section.key=value ...]", "")))
    return [found[0].removeprefix(".venv/bin/"), *found[1:]]


@pytest.fixture(scope="module")
def project(finished: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the paths that the pages name are there."""
    folder = tmp_path_factory.mktemp("documented") / "project"
    runs = folder / "runs"
    shutil.copytree(finished.parent / "runs" / "small", runs / "demo")
    recipe = finished.read_text().replace(str(finished.parent / "runs"), str(runs))
    (folder / "RECIPE").write_text(recipe)
    # What some pages take for granted: a release, and labels with logits.
    (folder / "WHOLE").write_text(recipe.replace("batch_size: 4}", "batch_size: 4, top_k: 8}", 1) + RELEASE)
    clip, cpu = min((speech / "test").glob("*.flac")), ROOT / "recipes" / "accelerate" / "cpu.yaml"
    links = {
        **{runs / name: runs / "demo" for name in ("small", "other", "alnum-real")},
        **{runs / f"{shape}-shape": runs / "demo" for shape in ("tiny", "base", "small")},
        **{folder / "speech" / name: speech for name in ("an4", "digits", "kathleen", "librispeech-mini")},
        **{folder / name: ROOT / name for name in ("recipes", "data_prep", "distill")},
        **{folder / name: clip for name in ("talk.wav", "hour.wav", "runs/demo/corpus/audio/spoken/000000.flac")},
        folder / "noise": speech, folder / "recordings": speech / "test", runs / "accelerate.yaml": cpu,
        **{folder / name: TEACHER for name in ("TEACHER", "runs/shapes/tiny", "runs/alnum-teacher/train/model")},
        folder / "STUDENT": runs / "demo" / "train" / "model",
    }  # fmt: skip
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    (runs / "alnum-compressed").mkdir()
    return folder


@pytest.fixture
def place(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, and we in it."""
    monkeypatch.chdir(project)
    for name in ("SPEECH", "NOISE", "SHAPE"):
        monkeypatch.delenv(name, raising=False)
    return project


class Read(Exception):
    """A command line that its own program has understood; nothing has run."""


def read(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the module's own parser makes of the arguments, and a recipe among them with its overrides."""

    def stopping(parse: Callable[..., argparse.Namespace]) -> Callable[..., None]:
        def stop(self: argparse.ArgumentParser, *given: list[str]) -> None:
            raise Read(parse(self, *given))

        return stop

    entry = importlib.import_module(module)
    entry = entry if hasattr(entry, "main") else importlib.import_module(f"{module}.__main__")
    with monkeypatch.context() as patch, pytest.raises(Read) as found:
        patch.setattr(sys, "argv", [module, *arguments])
        for way in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, way, stopping(getattr(argparse.ArgumentParser, way)))
        entry.main()
    given: argparse.Namespace = found.value.args[0]
    if getattr(given, "recipe", None):
        load_recipe(given.recipe, getattr(given, "overrides", []))
    return given


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_programs_own_parser_takes_the_command(monkeypatch: pytest.MonkeyPatch, page: str, command: str) -> None:
    program, *rest = ("WHOLE" if word == "RECIPE" else word for word in words(command))
    if program == "make":
        dry = subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, capture_output=True, text=True, check=False)
        assert dry.returncode == 0, f"{page}: {dry.stderr}"
    elif program == "sottovoce":
        given, left = cli.parse_arguments(rest)
        if rest[0] in cli.MODULE_COMMANDS:
            read(cli.MODULE_COMMANDS[rest[0]][0], left, monkeypatch)
        else:
            cli.select_stages(given)
    elif program == "python":
        assert rest[0] == "-m", page
        read(rest[1], rest[2:], monkeypatch)
    elif program == "accelerate":
        given = read("accelerate.commands.accelerate_cli", rest, monkeypatch)
        if rest[0] == "launch":
            module = given.training_script.removesuffix(".py").replace("/", ".")
            read(module, given.training_script_args, monkeypatch)
    else:
        assert command in HERE or only_read(command), f"{page}: {program} is not covered; see {__file__}"


@pytest.mark.parametrize("command", HERE)
def test_the_command_runs(place: Path, run: Run, command: str) -> None:
    program, *rest = words(command)
    modules = {"sottovoce": "recipes.engine.cli", "accelerate": "accelerate.commands.accelerate_cli"}
    started = [sys.executable, "-m", modules[program], *rest] if program in modules else ["bash", "-c", command]
    done = run("env", "-C", str(place), f"PYTHONPATH={ROOT}", *started)
    assert done.returncode == 0, done.stdout + done.stderr
    if "transcribe" in command:
        assert done.stdout


def only_read(command: str) -> bool:
    """Whether there is a reason not to run it."""
    return any(re.match(pattern, shlex.join(words(command))) for pattern in ONLY_READ)


def test_what_is_run_or_only_read_is_on_the_pages() -> None:
    found = {command for _, command in COMMANDS}
    assert set(HERE) <= found
    for pattern in ONLY_READ:
        assert any(re.match(pattern, shlex.join(words(command))) for command in found), pattern


def test_every_stage_is_run_by_a_test(finished: Path) -> None:
    run = {spec.name for more in ([], SHORT, [SECTION]) for spec in active_stages(load_recipe(finished, more))}
    assert run == set(STAGE_BY_NAME), "the runs of test_flow, test_heal and test_release"


def spoken(command: str) -> set[str]:
    """What a test that runs it has to name: the module or the command, its options, the keys it overrides."""
    before, said = "", set()
    for word in words(command):
        if before == "-m" or word in cli.MODULE_COMMANDS or word.startswith("--") or "=" in word:
            said.add(word.partition("=")[0])
        before = word
    return said


def quoted(file: Path) -> set[str]:
    """Each string of a test file, and each key it overrides."""
    nodes = ast.walk(ast.parse(file.read_text()))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return strings | {text.partition("=")[0] for text in strings}


def test_what_does_not_run_here_is_run_by_another_test() -> None:
    stage_commands = {spec.command for spec in STAGES}
    files = [quoted(file) for file in (ROOT / "tests").rglob("test_*.py") if file != Path(__file__)]
    for page, command in COMMANDS:
        plain = " ".join(word for word in words(command) if word != "RECIPE")
        if command not in HERE and not only_read(command) and plain not in stage_commands and plain[:5] != "make ":
            assert spoken(command), f"{page}: {command}"
            assert any(spoken(command) <= file for file in files), f"{page}: no test names {spoken(command)}"
