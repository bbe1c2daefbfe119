"""Timestamp rules, compared with transformers' logits processor; segments; subtitles."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from eval.decoding.subtitles import format_clock, format_subtitles
from eval.decoding.timestamps import Segment, TimestampRules, split_segments

END, NO_TIMES, BEGIN, SIZE = 20, 25, 26, 26 + 80
RULES = TimestampRules(BEGIN, END, NO_TIMES)


def transformers_logits(logits_BV: np.ndarray, generated_BL: np.ndarray) -> np.ndarray:
    config = GenerationConfig(
        eos_token_id=END, no_timestamps_token_id=NO_TIMES, max_initial_timestamp_index=50, return_timestamps=True
    )
    config._detect_timestamp_from_logprob = True
    processor = WhisperTimeStampLogitsProcessor(config, begin_index=1)
    tokens_BL = torch.from_numpy(np.concatenate([np.full((len(generated_BL), 1), 21), generated_BL], axis=1))
    found: np.ndarray = processor(tokens_BL, torch.from_numpy(logits_BV.copy())).numpy()
    return found


@given(seed=st.integers(0, 10_000), length=st.integers(1, 12))
def test_the_rules_allow_what_transformers_allows(seed: int, length: int) -> None:
    draw = np.random.default_rng(seed)
    generated_BL = np.zeros((2, 0), np.int64)
    for _ in range(length):
        logits_BV = draw.normal(0, 2, (2, SIZE)).astype(np.float32)
        expected_BV = transformers_logits(logits_BV, generated_BL)
        RULES(logits_BV, generated_BL)
        np.testing.assert_array_equal(logits_BV.argmax(axis=1), expected_BV.argmax(axis=1))
        np.testing.assert_array_equal(np.isfinite(logits_BV), np.isfinite(expected_BV))
        generated_BL = np.concatenate([generated_BL, logits_BV.argmax(axis=1)[:, None]], axis=1)


def test_segments_are_between_their_timestamps() -> None:
    tokens = [BEGIN, 3, 4, BEGIN + 50, BEGIN + 60, 5, BEGIN + 75, END]
    assert split_segments(tokens, BEGIN, END, 2.0) == [Segment(0.0, 1.0, [3, 4]), Segment(1.2, 1.5, [5])]
    assert split_segments([BEGIN + 5, 3], BEGIN, END, 2.0) == [Segment(0.1, 2.0, [3])]
    assert split_segments([3, END], BEGIN, END, 2.0) == [Segment(0.0, 2.0, [3])]
    assert split_segments([BEGIN, 3, BEGIN + 79], BEGIN, END, 1.3) == [Segment(0.0, 1.3, [3])], "not beyond the audio"


def test_subtitles() -> None:
    cues = [(0.0, 1.0, "a <b> & c"), (3661.5, 3662.25, "d --> e")]
    assert format_clock(3661.5, ",") == "01:01:01,500"
    assert format_subtitles(cues, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,000\na <b> & c\n\n2\n01:01:01,500 --> 01:01:02,250\nd -> e\n"
    )
    assert format_subtitles(cues, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na &lt;b> &amp; c\n\n01:01:01.500 --> 01:01:02.250\nd -> e\n"
    )
