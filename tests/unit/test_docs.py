"""The pages of the stages are the schema's own words, all of them, and current."""

import pytest

from recipes.docs import pages
from recipes.flow import FLOW, Spec
from tests.conftest import ROOT

PAGES = ROOT / "docs" / "stages"


def test_the_pages_are_current() -> None:
    found = {file.name: file.read_text() for file in PAGES.iterdir()}
    assert found == pages(), "run `python -m recipes.docs docs/stages`"


@pytest.mark.parametrize("spec", FLOW, ids=lambda spec: spec.name)
def test_a_page_says_what_the_stage_does_and_how_it_is_run(spec: Spec) -> None:
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
