from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.labels.label_store import Label
from data_prep.labels.quality_checks import (
    EXAMPLES,
    LabelSignals,
    QualityVerdict,
    count_label_errors,
    judge_label,
    measure_label,
    summarise_quality,
)
from eval.decoding.repetition import count_repeats
from eval.scoring.error_rates import normalizer
from recipes.schema.quality_section import QualitySection
from tests.unit.labels import decoding, label

BASIC = normalizer("basic", Path())


def said(text: str, reference: str | None = None, language: str = "en", **changes: Any) -> Label:
    return label("a", plain=decoding([1, 2, 3, 9], text=text), reference=reference, language=language, **changes)


def rate(text: str, reference: str, language: str) -> float:
    value = measure_label(said(text, reference, language), BASIC).error_rate
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
    """Defect 3 of the reference: one path rejected every caseless label, the other none."""
    assert verdict(said(good, good, language), max_wer=0.1).kept
    assert verdict(said(bad, good, language), max_wer=0.1).reason == "error rate above 0.1"


def test_languages_without_spaces_are_counted_in_characters() -> None:
    """Defect 4 of the reference: one wrong character of ten made the word error rate 100 %."""
    reference, heard = "今天天气非常好我们走", "今天天气非常好我们去"
    assert rate(heard, reference, "zh") == pytest.approx(0.1)
    assert verdict(said(heard, reference, "zh"), max_wer=0.15).kept
    assert rate(heard, reference, "en") == 1.0, "the defective formulation"
    assert rate("今天 天气 非常 好 我们 走", reference, "zh") == 0


def test_without_a_reference_there_is_no_error_rate_and_no_drop() -> None:
    assert count_label_errors(None, "a", BASIC, "en") is None
    assert count_label_errors("...", "a", BASIC, "en") is None, "nothing but punctuation"
    assert verdict(said("a"), max_wer=0.01).kept


@pytest.mark.parametrize(
    ("row", "limits", "reason"),
    [
        (said(""), {}, "empty label"),
        (said("a", error="no such file"), {}, "no label: no such file"),
        (label("a", plain=decoding([1, 2, 3], ended=False)), {}, "no end of text"),
        (said("no no no no no"), {}, "repeats above 4"),
        (said("abc " * 40), {"max_repeats": None}, "compression ratio above 2.4"),
        (said("the quick brown fox jumps over it", seconds=0.5), {}, "characters a second above 40"),
        (label("a", plain=decoding([1, 9], mean_logprob=-2.0)), {"min_logprob": -1.0}, "mean log-probability below -1"),
        (label("a", no_speech_prob=0.9, plain=decoding([1, 9], mean_logprob=-2.0)), {}, "no speech above 0.6"),
        (label("a", no_speech_prob=0.9), {}, None),
        (said("one two three"), {}, None),
    ],
)
def test_each_reason(row: Label, limits: dict[str, Any], reason: str | None) -> None:
    assert verdict(row, **limits).reason == reason


@given(st.integers(1, 6), st.integers(1, 4))
def test_repeats_counts_a_group_however_long(times: int, size: int) -> None:
    group = [str(word) for word in range(size)]
    assert count_repeats(["before", *group * times, "after"]) == times
    assert count_repeats([]) == 0


def test_the_summary_shows_the_doubtful_ones_from_both_sides() -> None:
    rows = [said("a b c d", "a b c d" if number < 20 else "a x y z", seconds=1.0 + number) for number in range(40)]
    verdicts = [verdict(row, max_wer=0.5) for row in rows]
    shown = summarise_quality(rows, verdicts)
    assert shown["kept"] == 20
    assert shown["dropped"] == {"error rate above 0.5": 20}
    assert shown["rates"]["error_rate"] == pytest.approx(60 / 160), "of the whole corpus, not a mean of rates"
    assert len(shown["worst_kept"]) == len(shown["best_dropped"]) == EXAMPLES
    assert sum(shown["histogram"]["counts"]) == 40
    assert all(row["reason"] is None for row in shown["worst_kept"])


def test_signals_without_units_have_no_rate() -> None:
    assert LabelSignals(None, None, 0.0, 0.0, 0, 0.0, 0.0).error_rate is None
