"""Tests of splitting recordings at silences and of packing utterances."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.audio.segmentation import (
    FRAME_SECONDS,
    SpeechDetector,
    find_segments,
    pack_utterances,
    recording_id,
    split_recording,
)
from eval.audio.utterances import Utterance

runs = st.lists(st.tuples(st.booleans(), st.integers(1, 400)), min_size=1, max_size=12)


def probabilities(shape: list[tuple[bool, int]]) -> np.ndarray:
    return np.concatenate([np.full(count, 0.9 if spoken else 0.1) for spoken, count in shape])


@settings(deadline=None)
@given(runs, st.sampled_from([2.0, 7.0, 30.0]))
def test_pieces_are_in_order_fit_the_window_and_hold_all_speech(shape: list[tuple[bool, int]], longest: float) -> None:
    probability = probabilities(shape)
    seconds = len(probability) * FRAME_SECONDS + 0.01
    pieces = find_segments(probability, seconds, longest)
    assert all(0 <= start < end <= seconds and end - start <= longest + 1e-3 for start, end in pieces)
    assert all(before[1] <= after[0] + 1e-3 for before, after in itertools.pairwise(pieces))
    for frame in np.flatnonzero(probability > 0.5):
        low, high = frame * FRAME_SECONDS, (frame + 1) * FRAME_SECONDS
        covered = sum(max(0.0, min(high, end) - max(low, start)) for start, end in pieces)
        assert covered == pytest.approx(FRAME_SECONDS, abs=2e-3), f"frame at {low:.2f} s is lost"


def test_a_cut_is_in_the_longest_silence_of_the_second_half() -> None:
    probability = probabilities([(True, 100), (False, 30), (True, 60), (False, 10), (True, 100)])
    (_, first_end), *_ = find_segments(probability, len(probability) * FRAME_SECONDS, 6.5)
    assert 100 * FRAME_SECONDS < first_end < 130 * FRAME_SECONDS


def test_silence_has_no_speech_and_gives_no_pieces() -> None:
    assert find_segments(np.zeros(100), 3.2, 2.0) == []
    detector = SpeechDetector()
    for _ in range(3):
        detector.feed(np.zeros(16_000, np.float32))
    assert len(detector.probabilities) == 3 * 16_000 // 512
    assert detector.probabilities.max() < 0.5


def test_the_block_size_does_not_change_the_probabilities() -> None:
    samples = (np.random.default_rng(0).standard_normal(40_000) * 0.1).astype(np.float32)
    at_once, in_blocks = SpeechDetector(), SpeechDetector()
    at_once.feed(samples)
    for block in np.array_split(samples, [100, 700, 20_001, 39_990]):
        in_blocks.feed(block)
    np.testing.assert_allclose(in_blocks.probabilities, at_once.probabilities, atol=1e-6)


def utterance(
    index: int, seconds: float, speaker: str | None, split: str = "train", text: str | None = "a"
) -> Utterance:
    name = f"s/{split}/{index:03d}.flac"
    return Utterance(name, "s", split, [name], seconds, text, speaker, None, [name], [seconds], str(index))


rows = st.lists(
    st.tuples(st.floats(0.2, 12), st.sampled_from(["x", "y", None]), st.sampled_from(["train", "test"]),
              st.sampled_from(["a", None])), max_size=20
)  # fmt: skip


@given(rows, st.sampled_from([12.0, 30.0]))
def test_packing_loses_no_sample_and_crosses_no_speaker(
    given_rows: list[tuple[float, str | None, str, str | None]], longest: float
) -> None:
    items = [utterance(index, *row) for index, row in enumerate(given_rows)]
    packed = pack_utterances(items, longest)
    assert [part for item in packed for part in item.parts] == [item.id for item in items], (
        "every utterance once, in order"
    )
    assert [part for item in packed for part in item.audio] == [item.audio[0] for item in items]
    by_id = {item.id: item for item in items}
    for item in packed:
        members = [by_id[part] for part in item.parts]
        assert {member.speaker for member in members} == {item.speaker}
        assert {member.split for member in members} == {item.split}
        assert item.seconds == pytest.approx(sum(item.part_seconds))
        assert len(members) == 1 or item.seconds <= longest
        assert len(members) == 1 or (item.speaker is not None and item.split == "train")
        texts = [member.text for member in members if member.text is not None]
        assert item.text == (" ".join(texts) if texts else None)
    assert all(
        first.seconds + second.seconds > longest or first.speaker != second.speaker or first.speaker is None
        or (first.split, first.text is None) != (second.split, second.text is None) or first.split == "test"
        for first, second in itertools.pairwise(packed)
    ), "neighbours that fit were joined"  # fmt: skip


def test_pieces_of_a_recording_have_its_time_range_and_are_packed_without_a_speaker() -> None:
    probability = probabilities([(True, 300), (False, 100), (True, 300), (False, 100), (True, 300)])
    recording = replace(utterance(0, len(probability) * FRAME_SECONDS, None), audio=["a.flac#bytes=512,99"])
    pieces = split_recording(recording, probability, 12.0)
    assert len(pieces) == 3
    assert all(piece.text is None and recording_id(piece.id) == recording.id for piece in pieces)
    assert pieces[1].audio[0].startswith("a.flac#bytes=512,99&t=12.")
    (packed,) = pack_utterances(pieces, 40.0)
    assert packed.parts == [piece.id for piece in pieces]
    assert len(pack_utterances([pieces[0], utterance(1, 2.0, None, text=None)], 40.0)) == 2, (
        "another recording, unknown speaker"
    )
