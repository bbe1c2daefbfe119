"""Tests of labels from transcripts: tokens of the teacher's vocabulary, as a student must predict them."""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer

from data_prep.labels.label_store import Label
from data_prep.labels.reference_labels import reference_labels
from eval.audio.utterances import Utterance
from recipes.core.errors import UserError
from tests.conftest import TEACHER
from tests.unit.labels import utterance

TOKENIZER = Tokenizer.from_file(str(TEACHER / "tokenizer.json"))


def labels_of(utterances: list[Utterance], text: Any = "reference", *, timestamps: bool = False) -> list[Label]:
    return reference_labels(utterances, TEACHER, language="en", task="transcribe", text=text, timestamps=timestamps)


def test_a_label_has_prompt_text_and_end_and_one_timed_segment() -> None:
    spoken = [replace(utterance("a"), text="TURN left, please!", seconds=1.234)]
    (row,) = labels_of(spoken, "normalized_reference", timestamps=True)
    assert row.text == "turn left please"
    assert row.plain.tokens[:4] == [257, 258, 260, 264]
    assert TOKENIZER.decode(row.plain.tokens[4:-1]) == " turn left please"
    assert row.plain.tokens[-1] == 256
    assert row.timed is not None
    times = [TOKENIZER.id_to_token(token) for token in (row.timed.tokens[3], row.timed.tokens[-2])]
    assert times == ["<|0.00|>", "<|1.24|>"]
    (row,) = labels_of(spoken)
    assert row.text == "TURN left, please!"


def test_a_missing_transcript_is_an_error_in_the_label_and_no_transcript_at_all_is_refused() -> None:
    spoken = [utterance("a"), replace(utterance("b"), text=None)]
    assert [row.error for row in labels_of(spoken)] == [None, "no transcript"]
    with pytest.raises(UserError, match=r"labels\.text: reference needs sources with transcripts"):
        labels_of(spoken[1:])
