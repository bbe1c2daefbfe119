"""The house rules that a reader relies on."""

import ast
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("recipes", "eval", "data_prep", "distill")
ROOMS = (
    "recipes/core", "recipes/schema", "recipes/engine",
    "eval/audio", "eval/runtimes", "eval/decoding", "eval/scoring", "eval/latency", "eval/reporting",
    "eval/page", "eval",
    "data_prep/sources", "data_prep/audio", "data_prep/labels", "data_prep/survey", "data_prep",
    "distill/losses", "distill/models", "distill/data", "distill/training", "distill/compression", "distill/exporters",
    "distill/planning", "distill/publishing", "distill",
)  # fmt: skip
"""A file may import from its own room and from those before it. A package's root, its stages, comes last."""

OVERRIDES = ("forward", "backward", "emit", "do_GET")
"""Methods that their base class documents."""

FILES = sorted(
    file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.name != "make_sentences.py"
)


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
    return names


def room_of_module(name: str) -> str:
    parts = name.split(".")
    return "/".join(parts[:2]) if "/".join(parts[:2]) in ROOMS else parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    place = file.relative_to(ROOT)
    if place.parts == (place.parts[0], "__init__.py"):
        return  # a docstring alone
    room = str(place.parent)
    assert room in ROOMS, f"{place}: the room {room} is not in ROOMS"
    for name in imported(file):
        if name.split(".")[0] in PACKAGES:
            other = room_of_module(name)
            assert ROOMS.index(other) <= ROOMS.index(room), f"{place} imports {name}"
            assert not (room == other and room in PACKAGES), f"{place}: a stage or command imports another, {name}"


@pytest.mark.parametrize("package", ["eval", "data_prep", "distill"])
def test_a_file_at_a_packages_root_is_a_stage_or_a_command(package: str) -> None:
    for file in (ROOT / package).glob("*.py"):
        if file.name != "__init__.py":
            text = file.read_text()
            assert 'if __name__ == "__main__":\n    run_main(main)' in text, f"{file}: cannot be run"


def test_no_two_files_and_no_two_classes_share_a_name() -> None:
    files = [file.name for file in FILES if file.name != "__init__.py"]
    classes = [
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    for names in (files, classes):
        assert [name for name in names if names.count(name) > 1] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short_and_documented(file: Path) -> None:
    text = file.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 250, f"{file}: more than 250 lines; it wants a second room"
    assert "TODO" not in text
    assert ast.get_docstring(tree), f"{file}: no docstring"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in [*tree.body, *(member for each in classes for member in each.body)]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 60, f"{file}: {node.name} has {lines} lines"
            private = node.name.startswith("_") or node.name in OVERRIDES
            assert private or ast.get_docstring(node), f"{file}: {node.name}: no docstring"


def test_the_command_line_starts_stages_and_imports_none() -> None:
    for file in (ROOT / "recipes").rglob("*.py"):
        heavy = {name.split(".")[0] for name in imported(file)} & {
            "torch",
            "transformers",
            "accelerate",
            "onnxruntime",
        }
        assert not heavy, f"{file} imports {heavy}"


@pytest.mark.parametrize("package", ["distill", "data_prep"])
def test_no_file_beside_a_launched_script_shadows_a_package(package: str) -> None:
    # `accelerate launch distill/train.py` puts distill/ first on sys.path.
    taken = set(sys.stdlib_module_names) | set(metadata.packages_distributions()) - set(PACKAGES)
    shadows = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path.is_dir()}
    shadows -= {"__init__", "__pycache__"}
    assert not shadows & taken


def test_deployed_runtimes_need_neither_torch_nor_transformers() -> None:
    for file in (ROOT / "eval" / "runtimes").glob("*.py"):
        if file.name not in ("torch_runtime.py", "modeling_sottovoce.py"):
            top = {
                name.split(".")[0]
                for node in ast.parse(file.read_text()).body
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name in (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                )
            }
            assert not top & {"torch", "transformers", "onnx"}, f"{file} imports {top}"


def test_no_pickle_and_no_remote_code() -> None:
    for file in FILES:
        text = file.read_text()
        assert "pickle" not in imported(file)
        assert "torch.save(" not in text
        assert "torch.load(" not in text
        assert "trust_remote_code" not in text
