"""The pages in docs/stages are current and complete, and the architecture page lists every room."""

import re

import pytest

from recipes.engine.docs import pages
from recipes.engine.flow import STAGES, Stage
from tests.conftest import ROOT

PAGES = ROOT / "docs" / "stages"


def test_the_pages_are_current() -> None:
    found = {file.name: file.read_text() for file in PAGES.iterdir()}
    assert found == pages(), "run `python -m recipes.engine.docs docs/stages`"


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_page_opens_with_a_summary_and_the_command(stage: Stage) -> None:
    text = pages()[f"{stage.name}.md"]
    assert f"\n{stage.command} RECIPE" in text
    summary = text.split("\n\n")[1]
    assert summary[0].isupper()
    assert summary.endswith(".")


def test_every_option_is_explained_with_its_default() -> None:
    for name, text in pages().items():
        if name != "README.md":
            rows = [line for line in text.splitlines() if line.startswith("| `")]
            assert rows
            for row in rows:
                cells = [cell.strip() for cell in row.replace(r"\|", "/").strip("|").split("|")]
                assert all(cells), row
    train = pages()["train.md"]
    assert "| `learning_rate` | number | `0.001` | Peak learning rate" in train
    assert "| `select` | `wer`, `loss` | `wer` |" in train
    assert "## train.augment" in train


@pytest.mark.parametrize("package", ["recipes", "data_prep", "distill", "eval", "tests"])
def test_the_architecture_page_lists_every_room(package: str) -> None:
    listing = re.search(r"## The house\n.*?```text\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.S)
    assert listing is not None
    part = re.search(rf"^{package}/(.*?)(?=^\w|\Z)", listing[1], re.M | re.S)
    assert part is not None
    names = set(re.findall(r"[\w.]+\.py|[a-z_]+/", part[1]))
    for path in (ROOT / package).iterdir():
        if path.is_dir() and not path.name.startswith("_") and not (path / "recipe.yaml").is_file():
            assert f"{path.name}/" in names, path
        elif path.suffix == ".py" and path.name != "__init__.py" and package != "tests":
            assert path.name in names, path
    for name in names:
        assert (ROOT / package / name).exists(), f"{package}: no {name}"
