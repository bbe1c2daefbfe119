"""Long recordings: no word is lost where windows meet, and texts are joined as transformers joins them."""

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
    find_seam,
    merge_windows,
    transcribe_in_chunks,
    transcribe_long,
    transcribe_sequentially,
    words_or_characters,
)
from eval.decoding.timestamps import complete_segments
from eval.decoding.transcriber import ModelFormat, Transcriber, Transcript
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from tests.conftest import TEACHER

WORD, PAUSE = round(0.4 * SAMPLE_RATE), round(0.2 * SAMPLE_RATE)
WORDS = st.lists(st.integers(1, 400), min_size=1, max_size=80, unique=True)


class ExactTranscriber(Transcriber):
    """A perfect transcriber of a synthetic language: word 7 is 0.4 s of samples of value 7.

    A word that the window cuts off is transcribed as `cut`.
    """

    def __init__(self) -> None:
        self.format = ModelFormat.load(TEACHER, "en", "transcribe")
        self.tokenizer = Transcriber.with_runtime(Transcriber(None, TEACHER, "en"), None).tokenizer  # type: ignore[arg-type]
        self.cut_words = 0

    def features(self, clips: Any) -> Any:
        return clips

    def decode(self, mel_BFT: Any, *, timestamps: bool = False, **_options: Any) -> list[Transcript]:
        return [self._transcribe_clip(clip, timestamps) for clip in mel_BFT]

    def _transcribe_clip(self, clip: np.ndarray, timestamps: bool) -> Transcript:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], clip, [0]])))
        tokens = list[int]()
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            complete = end - start == WORD
            text = f" w{int(clip[start])}" if complete else " cut"
            self.cut_words += not complete
            text_tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
            times = [self.format.timestamp_begin + round(50 * at / SAMPLE_RATE) for at in (start, end)]
            if not timestamps:
                tokens += text_tokens
            elif end < len(clip) or complete:
                tokens += [times[0], *text_tokens, times[1]]
            else:
                tokens += [times[0], *text_tokens]  # the segment that the window cuts off is not closed
        if timestamps and len(tokens) > 1 and tokens[-1] < self.format.end:
            last_time = max(index for index, token in enumerate(tokens) if token > self.format.end)
            tokens = tokens[: last_time + 1] if last_time else tokens
        return Transcript(self._text(tokens), [*tokens, self.format.end], 0.0)


def recording(words: list[int]) -> np.ndarray:
    pause = np.zeros(PAUSE, np.float32)
    return np.concatenate([part for word in words for part in (pause, np.full(WORD, word, np.float32))] + [pause])


@settings(deadline=None, max_examples=50)
@given(WORDS, st.sampled_from(["sequential", "chunked"]))
def test_no_word_is_lost_where_windows_meet(words: list[int], mode: Mode) -> None:
    transcriber = ExactTranscriber()
    transcript = transcribe_long(transcriber, recording(words), mode)
    assert transcript.text.split() == [f"w{word}" for word in words]
    if len(words) > 60:
        assert transcriber.cut_words, "no window cuts a word; the test is too easy"


def covers_recording(transcript: LongTranscript, samples: int, mode: Mode) -> bool:
    """Whether the windows cover all samples: without overlap in mode `sequential`, with overlap in mode `chunked`."""
    starts, ends = zip(*transcript.windows, strict=True)
    follows = [
        end == start if mode == "sequential" else end > start for end, start in zip(ends, starts[1:], strict=False)
    ]
    return starts[0] == 0 and ends[-1] == samples and all(follows)


@pytest.mark.parametrize("mode", ["sequential", "chunked"])
def test_windows_cover_the_recording_and_their_texts_are_in_the_transcript(speech: Path, mode: Mode) -> None:
    gap = np.zeros(SAMPLE_RATE // 2, np.float32)
    files = sorted((speech / "train").glob("*.flac"))
    samples = np.concatenate([part for file in files for part in (read_audio(file), gap)])
    transcriber = Transcriber(TorchRuntime(load_model(TEACHER)), TEACHER, "en")
    assert len(samples) > 2 * transcriber.format.window_samples
    transcript = transcribe_long(transcriber, samples, mode, batch_size=4)
    assert covers_recording(transcript, len(samples), mode)
    for start, end in transcript.windows:
        (alone,) = transcriber.transcribe([samples[start:end]], timestamps=mode == "sequential")
        words = alone.text.split()
        # The outer thirds of a chunk overlap with its neighbours.
        own = words if mode == "sequential" else words[len(words) // 3 + 2 : -(len(words) // 3) - 2]
        assert " ".join(own) in transcript.text
    if mode == "sequential":
        assert transcript.cues == sorted(transcript.cues)
        assert transcript.cues[-1][1] <= len(samples) / SAMPLE_RATE + 0.01


def test_a_short_clip_is_one_window_in_either_mode(speech: Path) -> None:
    clip = read_audio(sorted((speech / "train").glob("*.flac"))[0])
    transcriber = Transcriber(TorchRuntime(load_model(TEACHER)), TEACHER, "en")
    (plain,) = transcriber.transcribe([clip])
    (timed,) = transcriber.transcribe([clip], timestamps=True)
    assert transcribe_in_chunks(transcriber, clip).text == plain.text
    assert transcribe_sequentially(transcriber, clip).text == timed.text
    assert (
        len(transcribe_in_chunks(transcriber, clip).windows)
        == len(transcribe_sequentially(transcriber, clip).windows)
        == 1
    )


def test_the_text_so_far_is_carried_on_unless_it_repeats_itself() -> None:
    previous_texts = []

    class Recording(ExactTranscriber):
        def decode(self, mel_BFT: Any, *, previous: str = "", **options: Any) -> list[Transcript]:
            previous_texts.append(previous)
            return super().decode(mel_BFT, **options)

    transcribe_sequentially(Recording(), recording(list(range(1, 25))), carry=True, previous="names")
    assert previous_texts[0] == "names"
    assert previous_texts[1].startswith("names w1 w2 w3 ")
    previous_texts.clear()
    transcribe_sequentially(Recording(), recording([7] * 25), carry=True)
    assert set(previous_texts) == {""}
    previous_texts.clear()
    transcribe_sequentially(Recording(), recording(list(range(1, 25))), previous="names")
    assert set(previous_texts) == {"names"}


def test_the_next_window_starts_where_the_last_complete_segment_ends() -> None:
    begin, end = 100, 50
    two = [begin, 1, begin + 50, begin + 50, 2, 3]
    assert complete_segments([*two, end], begin, end) == (two[:3], 1.0), "the open segment is dropped"
    assert complete_segments([*two, begin + 80, end], begin, end) == ([*two, begin + 80], None), (
        "every segment is closed"
    )
    assert complete_segments([begin, 1, 2, end], begin, end) == ([begin, 1, 2], None)
    assert complete_segments([end], begin, end) == ([], None)


@settings(deadline=None)
@given(*[st.lists(st.sampled_from("abcdefgh"), max_size=9, unique=True)] * 2)
def test_texts_are_joined_as_transformers_does_if_one_alignment_is_best(left: list[str], right: list[str]) -> None:
    pairs = [
        (left[max(0, len(left) - size) :], right[max(0, size - len(left)) :], size)
        for size in range(1, len(left) + len(right))
    ]
    shares = sorted(sum(map(str.__eq__, head, tail)) / size for head, tail, size in pairs)
    assume(len(shares) < 2 or shares[-1] > shares[-2])
    stop, start = find_seam(left, right, 100)
    ids = [[ord(letter) for letter in side] for side in (left, right)]
    assert [ord(letter) for letter in left[:stop] + right[start:]] == _find_longest_common_sequence(ids)


def test_texts_are_joined_at_their_common_words() -> None:
    assert merge_windows(["One two, three four", "Three four five six"], overlap=0.5) == "One two, three four five six"
    assert merge_windows(["a b", "c d"]) == "a b c d", "without common words nothing is cut"
    assert merge_windows(["no no no no no no", "no no no no no no"]).split() == ["no"] * 10, (
        "the texts must not be aligned over their full length"
    )
    assert merge_windows(["今日は良い天気", "天気ですね皆さん"], overlap=0.5) == "今日は良い天気ですね皆さん"
    assert (merge_windows([]), merge_windows(["", "", "a"])) == ("", "a")
    assert words_or_characters("ab 今日 cd") == [" ab", " 今", "日", " cd"]
