import itertools
import json
from collections.abc import Sequence

import jiwer
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from eval.scoring.error_rates import ErrorCounts, count_errors, normalizer
from eval.scoring.evaluate_metric import ErrorRate
from eval.scoring.resampling import bootstrap, macro_bootstrap, permutation_test
from recipes.core.errors import UserError
from tests.conftest import SPEECH, TEACHER

TEXTS = st.lists(st.sampled_from(["one", "two", "three", "a", "b"]), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), st.booleans())
def test_rates_equal_jiwer(pairs: list[tuple[str, str]], characters: bool) -> None:
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    rate = jiwer.cer if characters else jiwer.wer
    assert count_errors(references, hypotheses, characters=characters).rate == pytest.approx(
        100 * rate(references, hypotheses)
    )


def test_the_evaluate_metric_counts_over_the_corpus_not_over_clips() -> None:
    metric = ErrorRate("wer", keep_in_memory=True)
    found = metric.compute(predictions=["one", "two x x x"], references=["one", "two"])
    assert found == {"wer": 150.0, "substitutions": 0, "deletions": 0, "insertions": 3, "units": 2}


def test_words_on_an_empty_reference_are_insertions() -> None:
    errors = count_errors(["", "one"], ["ghost words", "one"])
    assert (errors.insertions.tolist(), errors.units.tolist()) == ([2, 0], [0, 1])


def test_the_interval_holds_the_value_and_narrows_with_more_data() -> None:
    draw = np.random.default_rng(0)

    def width(count: int) -> float:
        zeros = np.zeros(count, np.int64)
        errors = ErrorCounts(draw.poisson(1, count), zeros, zeros, np.full(count, 5))
        found = bootstrap(errors, resamples=500, seed=0)
        assert found.low <= found.value <= found.high
        return found.high - found.low

    assert width(2000) < width(50) / 3


def test_a_paired_difference_of_a_system_to_itself_is_exactly_zero() -> None:
    errors = count_errors(["one two", "three"], ["one", "four"])
    found = bootstrap(errors, errors, resamples=200, seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_normalisers() -> None:
    assert normalizer("english", TEACHER)("THREE Colours, nine!") == "3 colors 9"
    assert normalizer("basic", TEACHER)("Rubout G M, E!") == "rubout g m e"
    assert normalizer("none", TEACHER)(" Keep It ") == "Keep It"
    with pytest.raises(UserError, match="spelling table"):
        normalizer("english", TEACHER / "nowhere")


def utterances(draw: np.random.Generator, count: int, rate: float) -> ErrorCounts:
    """Synthetic counts: 3 to 12 words, and errors that cluster in hard clips as real ones do."""
    units = draw.integers(3, 13, count)
    wrong = draw.binomial(units, draw.beta(4 * rate, 4 * (1 - rate), count))
    zeros = np.zeros(count, np.int64)
    return ErrorCounts(wrong, zeros, zeros, units)


@pytest.mark.parametrize("sets", [1, 2])
def test_intervals_hold_the_truth_as_often_as_they_say(sets: int) -> None:
    draw, rates = np.random.default_rng(0), (0.15, 0.3)
    truth = 100 * float(np.mean(rates[:sets]))
    held = 0
    for trial in range(1000):
        found = macro_bootstrap(
            [utterances(draw, 150, rate) for rate in rates[:sets]], resamples=400, seed=trial
        )  # fmt: skip
        held += found.low <= truth <= found.high
    assert 0.93 <= held / 1000 <= 0.97


def test_the_macro_interval_of_one_set_is_its_own_and_of_two_is_narrower_than_the_mean_of_ends() -> None:
    draw = np.random.default_rng(1)
    one, other = utterances(draw, 100, 0.3), utterances(draw, 100, 0.3)
    assert macro_bootstrap([one], resamples=300, seed=5) == bootstrap(one, resamples=300, seed=5)
    both = macro_bootstrap([one, other], resamples=2000, seed=0)
    ends = [bootstrap(each, resamples=2000, seed=0) for each in (one, other)]
    assert both.value == pytest.approx(np.mean([end.value for end in ends]))
    assert both.high - both.low < 0.85 * np.mean([end.high - end.low for end in ends]), "independent sets average out"


def exact(mine: ErrorCounts, other: ErrorCounts) -> float:
    """Over all swaps, without drawing any."""
    apart = mine.total - other.total
    sums = [abs(np.dot(signs, apart)) for signs in itertools.product((-1, 1), repeat=len(apart))]
    return float(np.mean([one >= abs(apart.sum()) for one in sums]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=10))
@example([(0, 1), (2, 0), (2, 0), (0, 3)])  # fifths that sum to nothing but for rounding
def test_p_values_are_those_of_all_swaps(pairs: list[tuple[int, int]]) -> None:
    mine, other = (
        ErrorCounts(*(np.array(values) for values in (side, [0] * len(pairs), [0] * len(pairs), [5] * len(pairs))))
        for side in zip(*pairs, strict=True)
    )
    found = permutation_test([mine], [other], seed=0)
    assert found == pytest.approx(exact(mine, other), abs=0.025)
    assert found == permutation_test([mine], [other], seed=0)
    assert permutation_test([other], [mine], seed=0) == pytest.approx(found, abs=0.025)


def test_p_values_of_equal_systems_are_spread_evenly_and_those_of_a_worse_one_are_small() -> None:
    draw = np.random.default_rng(2)

    def rejected(other_rate: float) -> float:
        p = [
            permutation_test([utterances(draw, 80, 0.3)], [utterances(draw, 80, other_rate)], seed=0, permutations=500)
            for _ in range(400)
        ]
        return float(np.mean(np.array(p) < 0.05))

    assert 0.02 <= rejected(0.3) <= 0.08
    assert rejected(0.42) > 0.6


@pytest.fixture(scope="module")
def spoken() -> Sequence[str]:
    """Every distinct transcript of the real speech next to the checkout."""
    if not SPEECH.is_dir():
        pytest.skip("no real speech next to the checkout")
    lines = [line for file in sorted(SPEECH.glob("*/*/metadata.jsonl")) for line in file.read_text().splitlines()]
    return sorted({row["text"] for row in map(json.loads, lines) if row.get("text")})


def test_normalisers_are_loaded_as_transformers_would(spoken: Sequence[str]) -> None:
    # They are transformers' own classes: this test checks that they get the teacher's spelling table and are applied to
    # the whole text. `test_normalisers` compares them with pairs written by hand.
    english = EnglishTextNormalizer(json.loads((TEACHER / "normalizer.json").read_text()))
    ours = normalizer("english", TEACHER)
    assert [ours(text) for text in spoken] == [english(text).strip() for text in spoken]
    basic, ours = BasicTextNormalizer(), normalizer("basic", TEACHER)
    assert [ours(text) for text in spoken] == [basic(text).strip() for text in spoken]


@pytest.mark.parametrize("characters", [False, True])
def test_rates_equal_jiwer_on_real_texts(spoken: Sequence[str], characters: bool) -> None:
    """Each transcript against one with words dropped, doubled and changed."""
    normalize, draw = normalizer("english", TEACHER), np.random.default_rng(0)
    references = [text for text in map(normalize, spoken) if text][::4]
    said = [
        " ".join(word for word in text.split() for _ in range(draw.choice([0, 1, 1, 1, 1, 1, 2]))).replace("the", "a")
        for text in references
    ]
    rate = (jiwer.cer if characters else jiwer.wer)(references, said)
    assert 0.1 < rate < 0.6
    assert count_errors(references, said, characters=characters).rate == pytest.approx(100 * rate)
