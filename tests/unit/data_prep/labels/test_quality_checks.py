"""Tests of the quality checks: error rates in all scripts, every reason to drop a label, and the summary."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.labels.label_store import Label
from data_prep.labels.quality_checks import (
    LabelSignals,
    QualityVerdict,
    count_label_errors,
    judge_label,
    measure_label,
)
from data_prep.labels.quality_summary import EXAMPLES, summarise_quality
from eval.decoding.repetition import count_repeats
from eval.scoring.error_rates import normalizer
from recipes.schema.quality_section import QualitySection
from tests.unit.labels import decoding, label

BASIC = normalizer("basic", Path())


def labelled(text: str, reference: str | None = None, language: str = "en", **changes: Any) -> Label:
    return label("a", plain=decoding([1, 2, 3, 9], text=text), reference=reference, language=language, **changes)


def rate(text: str, reference: str, language: str) -> float:
    value = measure_label(labelled(text, reference, language), BASIC).error_rate
    assert value is not None
    return value


def verdict(row: Label, **limits: Any) -> QualityVerdict:
    return judge_label(row, measure_label(row, BASIC), QualitySection(**limits))


@pytest.mark.parametrize(
    ("language", "reference", "text"),
    [("en", "HELLO, World.", "hello world"), ("ru", "ПРИВЕТ мир", "Привет, мир!"), ("el", "ΚΑΛΗΜΕΡΑ", "καλημερα")],
)
def test_case_and_punctuation_are_no_errors_in_any_script(language: str, reference: str, text: str) -> None:
    assert rate(text, reference, language) == 0


@pytest.mark.parametrize(
    ("language", "good", "bad"),
    [("hi", "नमस्ते दुनिया कैसे हो", "नमस्ते"), ("ar", "مرحبا بالعالم اليوم", "وداعا"), ("ko", "안녕 세상 여러분", "안녕"),
     ("zh", "今天天气很好", "明日下雨"), ("ja", "今日はいい天気です", "いいえ")],
)  # fmt: skip
def test_caseless_scripts_are_kept_when_right_and_dropped_when_wrong(language: str, good: str, bad: str) -> None:
    """A check of upper and lower case must not reject, or accept, every label in a script without case."""
    assert verdict(labelled(good, good, language), max_wer=0.1).kept
    assert verdict(labelled(bad, good, language), max_wer=0.1).reason == "error rate above 0.1"


def test_languages_without_spaces_are_counted_in_characters() -> None:
    """As one word, a text with one wrong character of ten would have a word error rate of 100 %."""
    reference, text = "今天天气非常好我们走", "今天天气非常好我们去"
    assert rate(text, reference, "zh") == pytest.approx(0.1)
    assert verdict(labelled(text, reference, "zh"), max_wer=0.15).kept
    assert rate(text, reference, "en") == 1.0, "counted in words"
    assert rate("今天 天气 非常 好 我们 走", reference, "zh") == 0


def test_without_a_reference_there_is_no_error_rate_and_no_drop() -> None:
    assert count_label_errors(None, "a", BASIC, "en") is None
    assert count_label_errors("...", "a", BASIC, "en") is None, "nothing but punctuation"
    assert verdict(labelled("a"), max_wer=0.01).kept


@pytest.mark.parametrize(
    ("row", "limits", "reason"),
    [
        (labelled(""), {}, "empty label"),
        (labelled("a", error="no such file"), {}, "no label: no such file"),
        (label("a", plain=decoding([1, 2, 3], ended=False)), {}, "no end of text"),
        (labelled("no no no no no"), {}, "repeats above 4"),
        (labelled("abc " * 40), {"max_repeats": None}, "compression ratio above 2.4"),
        (labelled("the quick brown fox jumps over it", seconds=0.5), {}, "characters a second above 40"),
        (label("a", plain=decoding([1, 9], mean_logprob=-2.0)), {"min_logprob": -1.0}, "mean log-probability below -1"),
        (label("a", no_speech_prob=0.9, plain=decoding([1, 9], mean_logprob=-2.0)), {}, "no speech above 0.6"),
        (label("a", no_speech_prob=0.9), {}, None),
        (labelled("one two three"), {}, None),
    ],
)
def test_each_reason(row: Label, limits: dict[str, Any], reason: str | None) -> None:
    assert verdict(row, **limits).reason == reason


@given(st.integers(1, 6), st.integers(1, 4))
def test_repeats_are_counted_for_groups_of_any_length(times: int, size: int) -> None:
    group = [str(word) for word in range(size)]
    assert count_repeats(["before", *group * times, "after"]) == times
    assert count_repeats([]) == 0


def test_the_summary_shows_doubtful_labels_that_were_kept_and_dropped() -> None:
    rows = [labelled("a b c d", "a b c d" if number < 20 else "a x y z", seconds=1.0 + number) for number in range(40)]
    verdicts = [verdict(row, max_wer=0.5) for row in rows]
    summary = summarise_quality(rows, verdicts)
    assert summary["kept"] == 20
    assert summary["dropped"] == {"error rate above 0.5": 20}
    assert summary["rates"]["error_rate"] == pytest.approx(60 / 160), (
        "over the whole corpus, not the mean of the labels' rates"
    )
    assert len(summary["worst_kept"]) == len(summary["best_dropped"]) == EXAMPLES
    assert sum(summary["histogram"]["counts"]) == 40
    assert all(row["reason"] is None for row in summary["worst_kept"])


def test_signals_without_units_have_no_rate() -> None:
    assert LabelSignals(None, None, 0.0, 0.0, 0, 0.0, 0.0).error_rate is None
