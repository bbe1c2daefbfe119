"""Long recordings: nothing is lost at the seams, whatever is said; the seams are those of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.whisper.tokenization_whisper import _find_longest_common_sequence

from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.long_form import (
    LongTranscript,
    Mode,
    chunked,
    find_seam,
    merge_windows,
    sequential,
    transcribe_long,
    words_or_characters,
)
from eval.decoding.timestamps import complete_segments
from eval.decoding.transcriber import ModelFormat, Transcriber, Transcript
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from tests.conftest import TEACHER

WORD, PAUSE = round(0.4 * SAMPLE_RATE), round(0.2 * SAMPLE_RATE)
WORDS = st.lists(st.integers(1, 400), min_size=1, max_size=80, unique=True)


class Listener(Transcriber):
    """An exact listener to a language of levels: word 7 is 0.4 s of samples of 7. What a window cuts is misheard."""

    def __init__(self) -> None:
        self.format = ModelFormat.load(TEACHER, "en", "transcribe")
        self.tokenizer = Transcriber.with_runtime(Transcriber(None, TEACHER, "en"), None).tokenizer  # type: ignore[arg-type]
        self.misheard = 0

    def features(self, clips: Any) -> Any:
        return clips

    def decode(self, mel_BFT: Any, *, timestamps: bool = False, **_options: Any) -> list[Transcript]:
        return [self._hear(clip, timestamps) for clip in mel_BFT]

    def _hear(self, clip: np.ndarray, timestamps: bool) -> Transcript:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], clip, [0]])))
        tokens = list[int]()
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            whole = end - start == WORD
            text = f" w{int(clip[start])}" if whole else " cut"
            self.misheard += not whole
            said = self.tokenizer.encode(text, add_special_tokens=False).ids
            times = [self.format.timestamp_begin + round(50 * at / SAMPLE_RATE) for at in (start, end)]
            if not timestamps:
                tokens += said
            elif end < len(clip) or whole:
                tokens += [times[0], *said, times[1]]
            else:
                tokens += [times[0], *said]  # what the window cuts off stays open
        if timestamps and len(tokens) > 1 and tokens[-1] < self.format.end:
            opened = max(index for index, token in enumerate(tokens) if token > self.format.end)
            tokens = tokens[: opened + 1] if opened else tokens
        return Transcript(self._text(tokens), [*tokens, self.format.end], 0.0)


def recording(words: list[int]) -> np.ndarray:
    pause = np.zeros(PAUSE, np.float32)
    return np.concatenate([part for word in words for part in (pause, np.full(WORD, word, np.float32))] + [pause])


@settings(deadline=None, max_examples=50)
@given(WORDS, st.sampled_from(["sequential", "chunked"]))
def test_an_exact_listener_loses_nothing_at_the_seams(words: list[int], mode: Mode) -> None:
    listener = Listener()
    said = transcribe_long(listener, recording(words), mode)
    assert said.text.split() == [f"w{word}" for word in words]
    if len(words) > 60:
        assert listener.misheard, "windows do cut words here"


def tiles(said: LongTranscript, samples: int, mode: Mode) -> bool:
    starts, ends = zip(*said.windows, strict=True)
    follows = [
        one == other if mode == "sequential" else one > other for one, other in zip(ends, starts[1:], strict=False)
    ]
    return starts[0] == 0 and ends[-1] == samples and all(follows)


@pytest.mark.parametrize("mode", ["sequential", "chunked"])
def test_the_teacher_hears_every_sample_and_every_window_has_its_say(speech: Path, mode: Mode) -> None:
    gap = np.zeros(SAMPLE_RATE // 2, np.float32)
    files = sorted((speech / "train").glob("*.flac"))
    samples = np.concatenate([part for file in files for part in (read_audio(file), gap)])
    transcriber = Transcriber(TorchRuntime(load_model(TEACHER)), TEACHER, "en")
    assert len(samples) > 2 * transcriber.format.window_samples
    said = transcribe_long(transcriber, samples, mode, batch_size=4)
    assert tiles(said, len(samples), mode)
    for start, end in said.windows:
        (alone,) = transcriber.transcribe([samples[start:end]], timestamps=mode == "sequential")
        words = alone.text.split()
        # The outer thirds of a chunk are its neighbours' to say as well.
        own = words if mode == "sequential" else words[len(words) // 3 + 2 : -(len(words) // 3) - 2]
        assert " ".join(own) in said.text
    if mode == "sequential":
        assert said.cues == sorted(said.cues)
        assert said.cues[-1][1] <= len(samples) / SAMPLE_RATE + 0.01


def test_a_short_clip_is_one_window_in_either_mode(speech: Path) -> None:
    clip = read_audio(sorted((speech / "train").glob("*.flac"))[0])
    transcriber = Transcriber(TorchRuntime(load_model(TEACHER)), TEACHER, "en")
    (plain,) = transcriber.transcribe([clip])
    (timed,) = transcriber.transcribe([clip], timestamps=True)
    assert chunked(transcriber, clip).text == plain.text
    assert sequential(transcriber, clip).text == timed.text
    assert len(chunked(transcriber, clip).windows) == len(sequential(transcriber, clip).windows) == 1


def test_what_came_before_is_carried_on_and_a_loop_is_not() -> None:
    given_before = []

    class Watched(Listener):
        def decode(self, mel_BFT: Any, *, previous: str = "", **options: Any) -> list[Transcript]:
            given_before.append(previous)
            return super().decode(mel_BFT, **options)

    sequential(Watched(), recording(list(range(1, 25))), carry=True, previous="names")
    assert given_before[0] == "names"
    assert given_before[1].startswith("names w1 w2 w3 ")
    given_before.clear()
    sequential(Watched(), recording([7] * 25), carry=True)
    assert set(given_before) == {""}
    given_before.clear()
    sequential(Watched(), recording(list(range(1, 25))), previous="names")
    assert set(given_before) == {"names"}


def test_reading_goes_on_where_a_segment_closed() -> None:
    begin, end = 100, 50
    two = [begin, 1, begin + 50, begin + 50, 2, 3]
    assert complete_segments([*two, end], begin, end) == (two[:3], 1.0), "the open segment is read again"
    assert complete_segments([*two, begin + 80, end], begin, end) == ([*two, begin + 80], None), (
        "all is closed: the whole window"
    )
    assert complete_segments([begin, 1, 2, end], begin, end) == ([begin, 1, 2], None)
    assert complete_segments([end], begin, end) == ([], None)


@settings(deadline=None)
@given(*[st.lists(st.sampled_from("abcdefgh"), max_size=9, unique=True)] * 2)
def test_seams_are_those_of_transformers_where_one_place_agrees_best(left: list[str], right: list[str]) -> None:
    pairs = [
        (left[max(0, len(left) - size) :], right[max(0, size - len(left)) :], size)
        for size in range(1, len(left) + len(right))
    ]
    shares = sorted(sum(map(str.__eq__, head, tail)) / size for head, tail, size in pairs)
    assume(len(shares) < 2 or shares[-1] > shares[-2])
    kept, start = find_seam(left, right, 100)
    ids = [[ord(letter) for letter in side] for side in (left, right)]
    assert [ord(letter) for letter in left[:kept] + right[start:]] == _find_longest_common_sequence(ids)


def test_texts_are_joined_by_what_they_share() -> None:
    assert merge_windows(["One two, three four", "Three four five six"], overlap=0.5) == "One two, three four five six"
    assert merge_windows(["a b", "c d"]) == "a b c d", "nothing in common: all is kept"
    assert merge_windows(["no no no no no no", "no no no no no no"]).split() == ["no"] * 10, (
        "not laid over from end to end"
    )
    assert merge_windows(["今日は良い天気", "天気ですね皆さん"], overlap=0.5) == "今日は良い天気ですね皆さん"
    assert (merge_windows([]), merge_windows(["", "", "a"])) == ("", "a")
    assert words_or_characters("ab 今日 cd") == [" ab", " 今", "日", " cd"]
