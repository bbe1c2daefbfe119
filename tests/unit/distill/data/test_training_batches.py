"""The order of labels, batches of examples, and how processes share them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data_prep.labels.label_store import Label
from distill.data.batch_order import BatchOrder
from distill.data.examples import IGNORED_LABEL, Example, ExampleSampler
from distill.data.training_batches import Collator, training_batches, validation_batches
from tests.unit.labels import label

LABELS = [label(str(number)) for number in range(37)]


@given(batch_size=st.integers(1, 50), seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_every_epoch_sees_every_row_once(batch_size: int, seed: int, epochs: int) -> None:
    total, order = epochs * len(LABELS), BatchOrder(LABELS, batch_size, seed)
    seen = [(row.id, epoch) for step in range(-(-total // batch_size)) for row, epoch in order(step)]
    for epoch in range(epochs):
        part = seen[epoch * len(LABELS) : (epoch + 1) * len(LABELS)]
        assert sorted(part) == sorted((row.id, epoch) for row in LABELS)
    if epochs > 1:
        assert [row for row, _ in seen[: len(LABELS)]] != [row for row, _ in seen[len(LABELS) : 2 * len(LABELS)]]


def test_weights_set_how_often_a_source_is_drawn() -> None:
    labels = [label(f"{source}{number}", source=source) for source in "abc" for number in range(10)]
    order = BatchOrder(labels, 5, seed=0, weights={"a": 2.0, "b": 0.5})
    assert order.epoch_size == 20 + 5 + 10
    two_epochs = [row.id for step in range(2 * order.epoch_size // 5) for row, _ in order(step)]
    counts = {source: sorted(Counter(name for name in two_epochs if name[0] == source).values()) for source in "abc"}
    assert counts == {"a": [4] * 10, "b": [1] * 10, "c": [2] * 10}, "with a weight of 0.5, two epochs contain every row"


@pytest.fixture
def spoken(tmp_path: Path) -> list[Label]:
    soundfile.write(tmp_path / "a.wav", np.full(800, 0.5), 16_000)
    return [label(str(number), [1, 2, *range(3, 3 + number), 9], str(tmp_path / "a.wav")) for number in range(1, 12)]


def test_processes_together_see_the_rows_of_a_single_one(spoken: list[Label]) -> None:
    collator, order = Collator(1600, 0), BatchOrder(spoken, 4, seed=1)

    def rows(rank: int, world: int) -> list[list[str]]:
        batches = training_batches(
            order, ExampleSampler(), {}, collator, first_step=3, last_step=6, rank=rank, world=world, workers=0, size=4
        )
        return [batch.ids for (batch,) in batches]

    halves = zip(rows(0, 2), rows(1, 2), strict=True)
    assert [sorted(first + second) for first, second in halves] == [sorted(step) for step in rows(0, 1)]


def test_prompt_and_padding_are_inputs_but_not_targets(spoken: list[Label]) -> None:
    (batch,) = validation_batches([spoken[0], spoken[2]], Collator(1600, 0), batch_size=2)
    assert batch.inputs_BL.tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.labels_BL.tolist() == [
        [IGNORED_LABEL, 3, 9, IGNORED_LABEL, IGNORED_LABEL],
        [IGNORED_LABEL, 3, 4, 5, 9],
    ]
    assert batch.samples_BN.shape == (2, 1600)
    assert float(batch.samples_BN[0, :800].min()) > 0.4
    assert float(batch.samples_BN[0, 800:].abs().max()) == 0


def test_previous_text_is_an_input_but_not_a_target(spoken: list[Label]) -> None:
    example = Example(spoken[0], spoken[0].plain, [50, 7, 8])
    batch = Collator(1600, 0)([example])
    assert batch.inputs_BL.tolist() == [[50, 7, 8, 1, 2, 3]]
    assert batch.labels_BL.tolist() == [[IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL, 3, 9]]


def test_a_curriculum_begins_with_the_shortest_and_ends_with_all() -> None:
    labels = [label(str(number), seconds=0.5 + number / 10) for number in range(100)]
    order = BatchOrder(labels, 4, seed=0, curriculum=200)
    longest = [max(row.seconds for row, _ in order(step)) for step in range(200)]
    assert longest[0] <= labels[3].seconds
    assert max(longest[:100]) <= labels[50].seconds
    assert max(longest) > labels[90].seconds
    plain = BatchOrder(labels, 4, seed=0)
    assert [order(200 + step) for step in range(30)] == [plain(step) for step in range(30)]


def test_short_windows_are_padded_to_the_longest_clip_of_a_batch(spoken: list[Label]) -> None:
    examples = [Example(row, row.plain, []) for row in spoken[:3]]
    assert Collator(1600, 0)(examples).samples_BN.shape == (3, 1600)
    short = Collator(1600, 0, full_window=0.0)(examples)
    assert short.samples_BN.shape == (3, 960), "800 samples are two and a half encoder positions"
    assert short.seconds == [0.05] * 3
    assert short.texts == [row.plain.tokens[2:-1] for row in spoken[:3]]
