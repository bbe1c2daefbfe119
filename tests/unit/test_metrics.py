import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.error_rate import ErrorRate
from eval.metrics import Errors, bootstrap, count_errors, normalizer
from recipes.errors import UserError
from tests.conftest import TEACHER

TEXTS = st.lists(st.sampled_from(["one", "two", "three", "a", "b"]), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), st.booleans())
def test_rates_equal_jiwer(pairs: list[tuple[str, str]], characters: bool) -> None:
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    rate = jiwer.cer if characters else jiwer.wer
    assert count_errors(references, hypotheses, characters=characters).rate == pytest.approx(
        100 * rate(references, hypotheses)
    )


def test_the_evaluate_face_counts_over_the_corpus_not_over_clips() -> None:
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
        errors = Errors(draw.poisson(1, count), zeros, zeros, np.full(count, 5))
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
