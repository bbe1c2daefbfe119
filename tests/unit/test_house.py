"""The house rules that a reader relies on."""

import ast
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import ROOT

ORDER = ("recipes", "eval", "data_prep", "distill")
FILES = sorted(file for package in ORDER for file in (ROOT / package).rglob("*.py"))


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    rank = ORDER.index(file.relative_to(ROOT).parts[0])
    for name in imported(file):
        if (package := name.split(".")[0]) in ORDER:
            assert ORDER.index(package) <= rank, f"{file} imports {name}"


def test_the_command_line_starts_stages_and_imports_none() -> None:
    for file in (ROOT / "recipes").glob("*.py"):
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
    taken = set(sys.stdlib_module_names) | set(metadata.packages_distributions()) - set(ORDER)
    shadows = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py"} - {
        "__init__",
        "__main__",
    }
    assert not shadows & taken


def test_deployed_runtimes_need_neither_torch_nor_transformers() -> None:
    for file in (ROOT / "eval" / "runtimes").glob("*.py"):
        if file.name != "torch.py":
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
