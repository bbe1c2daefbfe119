"""The pages of the stages are the schema's own words, all of them, and current."""

import re

import pytest

from recipes.engine.docs import pages
from recipes.engine.flow import STAGES, Stage
from tests.conftest import ROOT

PAGES = ROOT / "docs" / "stages"


def test_the_pages_are_current() -> None:
    found = {file.name: file.read_text() for file in PAGES.iterdir()}
    assert found == pages(), "run `python -m recipes.engine.docs docs/stages`"


@pytest.mark.parametrize("spec", STAGES, ids=lambda spec: spec.name)
def test_a_page_says_what_the_stage_does_and_how_it_is_run(spec: Stage) -> None:
    text = pages()[f"{spec.name}.md"]
    assert f"\n{spec.command} RECIPE" in text
    opening = text.split("\n\n")[1]
    assert opening[0].isupper()
    assert opening.endswith(".")


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


@pytest.mark.parametrize("room", ["recipes", "data_prep", "distill", "eval", "tests", "docs"])
def test_the_readme_says_what_lives_where(room: str) -> None:
    listing = re.search(r"## What lives where\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert listing is not None
    part = re.search(rf"^{room}/(.*?)(?=^\w|\Z)", listing[1], re.M | re.S)
    assert part is not None
    names = set(re.findall(r"[\w.]+\.py|[a-z_]+/", part[1]))
    for path in (ROOT / room).iterdir():
        if path.is_dir() and not path.name.startswith("_") and not (path / "recipe.yaml").is_file():
            assert f"{path.name}/" in names, path
        elif path.suffix == ".py" and path.name not in ("__init__.py", "conftest.py"):
            assert path.name in names, path
    for name in names:
        assert name.endswith("/") or list((ROOT / room).rglob(name)), f"{room}: no {name}"
