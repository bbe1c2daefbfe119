"""Labels from transcripts: in the teacher's vocabulary, as a student is to write them."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from data_prep.labels.reference_labels import reference_labels
from recipes.core.errors import UserError
from recipes.schema.recipe import Recipe, validate_recipe
from tests.conftest import TEACHER
from tests.unit.labels import utterance

TOKENIZER = Tokenizer.from_file(str(TEACHER / "tokenizer.json"))


def recipe(**labels: object) -> Recipe:
    return validate_recipe(
        {
            "name": "x", "teacher": {"model": str(TEACHER)}, "corpus": {"sources": [{"audio": "."}]},
            "student": {"decoder_layers": 2}, "labels": labels,
        },
        "test",
    )  # fmt: skip


def test_they_hold_prompt_text_and_end_and_times_of_the_whole() -> None:
    spoken = [replace(utterance("a"), text="TURN left, please!", seconds=1.234)]
    (row,) = reference_labels(recipe(text="normalized_reference", timestamps=True), spoken)
    assert row.text == "turn left please"
    assert row.plain.tokens[:4] == [257, 258, 260, 264]
    assert TOKENIZER.decode(row.plain.tokens[4:-1]) == " turn left please"
    assert row.plain.tokens[-1] == 256
    assert row.timed is not None
    times = [TOKENIZER.id_to_token(token) for token in (row.timed.tokens[3], row.timed.tokens[-2])]
    assert times == ["<|0.00|>", "<|1.24|>"]
    (row,) = reference_labels(recipe(text="reference"), spoken)
    assert row.text == "TURN left, please!"


def test_an_utterance_without_a_transcript_is_an_error_row_and_none_at_all_is_refused() -> None:
    spoken = [utterance("a"), replace(utterance("b"), text=None)]
    assert [row.error for row in reference_labels(recipe(text="reference"), spoken)] == [None, "no transcript"]
    with pytest.raises(UserError, match=r"labels\.text: reference needs sources with transcripts"):
        reference_labels(recipe(text="reference"), spoken[1:])
