"""Drawing examples from labels, and finding the label before each utterance."""

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from distill.data.examples import IGNORED_LABEL, ExampleSampler, previous_labels
from tests.unit.labels import decoding, label, utterance

TIMED = decoding([1, 70, 3, 80, 9], 1)
LABELS = [label(str(number), timed=TIMED) for number in range(200)]


def test_every_epoch_draws_anew_and_with_the_given_probability() -> None:
    """The draws must not be cached with the prepared data, where every epoch would see the same ones."""
    sampler = ExampleSampler(timestamps=0.3, previous_text=0.5, start_of_previous=50)
    epochs = [[sampler(row, LABELS[0], epoch) for row in LABELS] for epoch in range(10)]
    timed = [[example.written is TIMED for example in epoch] for epoch in epochs]
    prompted = [[bool(example.previous) for example in epoch] for epoch in epochs]
    assert all(first != second for first, second in itertools.pairwise(timed))
    assert 0.25 < sum(map(sum, timed)) / 2000 < 0.35
    assert 0.45 < sum(map(sum, prompted)) / 2000 < 0.55
    both = sum(
        is_timed and is_prompted
        for timed_epoch, prompted_epoch in zip(timed, prompted, strict=True)
        for is_timed, is_prompted in zip(timed_epoch, prompted_epoch, strict=True)
    )
    assert 0.12 < both / 2000 < 0.18, "the two draws are independent"
    assert [sampler(row, LABELS[0], 3) for row in LABELS] == epochs[3], "a resumed run draws the same examples"


def test_previous_text_starts_once_and_keeps_its_end() -> None:
    sampler = ExampleSampler(previous_text=1.0, start_of_previous=50, max_length=20)
    before = label("b", [1, 2, *range(100, 130), 9])
    example = sampler(label("a"), before, 0)
    assert example.previous == [50, *range(121, 130)], "half of the decoder at most"
    assert Counter(example.inputs)[50] == 1
    assert example.inputs == [50, *range(121, 130), 1, 2, 3]
    assert example.targets == [IGNORED_LABEL] * 11 + [3, 9]


@given(st.integers(4, 30), st.integers(1, 40), st.integers(1, 40))
def test_an_example_fits_the_decoder(max_length: int, text: int, before: int) -> None:
    sampler = ExampleSampler(previous_text=1.0, start_of_previous=50, max_length=max_length)
    tokens = [1, 2, *range(3, 3 + text), 9][:max_length]
    example = sampler(label("a", tokens), label("b", [1, 2, *range(100, 100 + before), 9]), 0)
    assert len(example.inputs) == len(example.targets) <= max_length


def test_previous_text_never_crosses_speakers_recordings_or_gaps() -> None:
    """Text of another speaker, recording or split, or from before a missing label, is not what was said just before."""
    corpus = [
        utterance("a1", speaker="a"), utterance("a2", speaker="a"), utterance("b1", speaker="b"),
        utterance("b2", speaker="b", split="validation"), utterance("n1", speaker=None), utterance("n2", speaker=None),
        utterance("r#t=0,5", speaker=None, parts=["r#t=0,5"]), utterance("r#t=5,9", speaker=None, parts=["r#t=5,9"]),
        utterance("a3", speaker="a"), utterance("dropped", speaker="a"), utterance("a4", speaker="a"),
        utterance("cut", speaker="a"), utterance("a5", speaker="a"),
    ]  # fmt: skip
    labels = [label(item.id) for item in corpus if item.id not in ("dropped", "cut")]
    labels.append(label("cut", plain=decoding([1, 2, 3], ended=False)))
    previous = previous_labels(labels, corpus)
    assert {name: before.id for name, before in previous.items()} == {"a2": "a1", "r#t=5,9": "r#t=0,5", "cut": "a4"}
