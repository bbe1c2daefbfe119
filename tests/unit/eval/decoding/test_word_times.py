"""Word times: the best path through the attention, splitting into words, silence, and the choice of heads."""

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from distill.exporters.head_selection import JoinedClip, best_head_set, join_recordings, joined_clips
from eval import transcribe
from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.transcriber import Transcriber
from eval.decoding.word_times import WordTimer, loud_range, smooth_attention, split_words, token_starts, trim_silence
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import UserError
from tests.conftest import TEACHER
from tests.unit.labels import label

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS = [[3, 1], [2, 1], [1, 0]]


def paths(tokens: int, positions: int) -> list[list[tuple[int, int]]]:
    """Return every path from the first cell to the last."""
    if (tokens, positions) == (1, 1):
        return [[(0, 0)]]
    before = [(tokens - 1, positions), (tokens, positions - 1), (tokens - 1, positions - 1)]
    cell = (tokens - 1, positions - 1)
    return [[*path, cell] for size in before if min(size) > 0 for path in paths(*size)]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
@settings(deadline=None)
def test_the_path_has_the_largest_sum_of_all(tokens: int, positions: int, seed: int) -> None:
    score_HNS = np.random.default_rng(seed).standard_normal((2, tokens, positions))
    for score_NS, starts_N in zip(score_HNS, token_starts(score_HNS), strict=True):
        best = max(paths(tokens, positions), key=lambda path: sum(score_NS[cell] for cell in path))
        assert starts_N.tolist() == [min(position for token, position in best if token == row) for row in range(tokens)]


@given(arrays(np.float64, array_shapes(min_dims=3, max_dims=3, max_side=12), elements=st.integers(-2, 2)))
@settings(deadline=None)
def test_starts_never_decrease(score_HNS: np.ndarray) -> None:
    starts_HN = token_starts(score_HNS)
    assert starts_HN.shape == score_HNS.shape[:2]
    assert (starts_HN[:, 0] == 0).all()
    assert (np.diff(starts_HN, axis=1) >= 0).all()
    assert starts_HN.max() < score_HNS.shape[2]


def attention(edges: list[int], seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """Return the weights [1, N, S] of a head that attends, for each token, to the span between two edges."""
    weights_1NS = noise * np.random.default_rng(seed).random((1, len(edges) - 1, edges[-1]))
    for token, (start, end) in enumerate(pairwise(edges)):
        weights_1NS[0, token, start:end] += 0.1
    normalized: np.ndarray = weights_1NS / weights_1NS.sum(axis=-1, keepdims=True)
    return normalized


@given(st.lists(st.integers(8, 30), min_size=2, max_size=12), st.integers(0, 100))
@settings(deadline=None)
def test_known_attention_gives_known_times(lengths: list[int], seed: int) -> None:
    edges = np.cumsum([0, *lengths]).tolist()
    starts_N = token_starts(smooth_attention(attention(edges, seed), 7))[0]
    assert np.abs(starts_N - edges[:-1]).max() <= 1


def test_a_single_peak_does_not_move_a_word() -> None:
    edges = [0, 20, 40, 60]
    weights_1NS = attention(edges, noise=0.0)
    weights_1NS[0, 0, 55] = 1.0
    assert token_starts(smooth_attention(weights_1NS, 7))[0].tolist() == edges[:-1]


def pairs_tokenizer() -> Tokenizer:
    """Byte pairs as Whisper has them: a space belongs to the token after it, and Chinese shares tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" one two three, four five! six"] * 20 + ["你好世界"] * 20, trainer)
    return tokenizer


TOKENIZERS = [Tokenizer.from_file(str(TEACHER / "tokenizer.json")), pairs_tokenizer()]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bytes", "pairs"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" one two three", ["one", "two", "three"]),
        (" one, two!", ["one,", "two!"]),
        (' - one - two "', ["- one -", 'two "']),
        (" 5 € now", ["5", "€", "now"]),
        ("", []),
        (" ", []),
    ],
)
def test_words_are_split_at_spaces(tokenizer: Tokenizer, text: str, words: list[str]) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    found = split_words(tokenizer, tokens)
    assert [word for word, _, _ in found] == words
    for word, first, stop in found:
        assert tokenizer.decode(tokens[first:stop]).strip() == word


def test_a_script_without_spaces_is_split_at_tokens() -> None:
    (single, pairs) = (
        split_words(tokenizer, tokenizer.encode("你好世界", add_special_tokens=False).ids) for tokenizer in TOKENIZERS
    )
    assert [word for word, _, _ in single] == ["你", "好", "世", "界"]
    assert "".join(word for word, _, _ in pairs) == "你好世界"
    assert all(before[2] <= after[1] for before, after in pairwise(pairs))


@given(st.text(max_size=30))
@settings(deadline=None)
def test_no_letter_is_lost_and_no_token_is_used_twice(text: str) -> None:
    tokenizer = TOKENIZERS[0]
    tokens = tokenizer.encode(f" {text}", add_special_tokens=False).ids
    found = split_words(tokenizer, tokens)
    decoded = tokenizer.decode(tokens)
    assert "".join("".join(word.split()) for word, _, _ in found) == "".join(decoded.split())
    assert all(before[2] <= after[1] for before, after in pairwise(found))


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's folder, with alignment heads."""
    folder = tmp_path_factory.mktemp("timed") / "model"
    shutil.copytree(TEACHER, folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"alignment_heads": HEADS}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"median_filter_width": 3}))
    return folder


@pytest.fixture(scope="module")
def transcriber(timed: Path) -> Transcriber:
    return Transcriber(TorchRuntime(load_model(timed)), timed, "en")


def test_words_follow_the_audio(transcriber: Transcriber, timed: Path, speech: Path) -> None:
    timer = WordTimer.from_folder(transcriber, timed)
    samples = read_audio(speech / "train" / "000000.flac")
    silence = np.zeros(SAMPLE_RATE // 2, np.float32)
    tokens = transcriber.tokenizer.encode(" one two three", add_special_tokens=False).ids
    plain, late = (timer.words(np.concatenate(parts), tokens) for parts in ([samples], [silence, samples]))
    assert [word.word for word in plain] == ["one", "two", "three"]
    begin, end = loud_range(samples)
    for words, offset in ((plain, 0.0), (late, 0.5)):
        assert all(word.start < word.end for word in words)
        assert all(before.end <= after.start for before, after in pairwise(words))
        assert words[0].start == pytest.approx(offset + begin, abs=0.15)
        assert words[-1].end == pytest.approx(offset + end, abs=0.15)
    assert [word.start + 0.5 for word in plain] == pytest.approx([word.start for word in late], abs=0.15)
    assert timer.words(samples, tokens, 10.0)[0].start >= 10
    assert transcriber.runtime.model.config._attn_implementation != "eager"  # type: ignore[attr-defined]


def test_errors_without_word_times_say_what_to_do(transcriber: Transcriber, timed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected alignment_heads .* found none; write them with `python -m distill"):
        WordTimer.from_folder(transcriber, TEACHER)
    with pytest.raises(UserError, match="which only --runtime torch gives"):
        WordTimer.from_folder(Transcriber.with_runtime(transcriber, None), timed)  # type: ignore[arg-type]
    (tmp_path / "generation_config.json").write_text('{"alignment_heads": [[4, 0]]}')
    with pytest.raises(UserError, match=r"within 4 decoder layers of 3 heads, found \[\[4, 0\]\]"):
        WordTimer.from_folder(transcriber, tmp_path)


def test_the_command_prints_words_of_short_and_long_files(
    timed: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = speech / "train" / "000000.flac"
    long = np.concatenate([read_audio(clip)] * 6)
    assert len(long) > 7 * SAMPLE_RATE
    soundfile.write(tmp_path / "long.wav", long, SAMPLE_RATE)
    arguments = ["transcribe", "--words", "--threads", "1", str(timed), str(clip)]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "long.wav"), "--format", "json"])
    transcribe.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        assert " ".join(word["word"] for word in row["words"]) == row["text"]
        times = [time for word in row["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times)
        assert times[-1] <= row["seconds"] + 0.01
    assert rows[1]["words"][-1]["start"] > 7
    monkeypatch.setattr(sys, "argv", [*arguments, "--format", "srt", "--out", str(tmp_path)])
    transcribe.main()
    cues = (tmp_path / "000000.srt").read_text().strip().split("\n\n")
    assert [cue.splitlines()[-1] for cue in cues] == rows[0]["text"].split()


def clip_and_attention(heads: list[np.ndarray], edges: list[int]) -> tuple[list[np.ndarray], list[JoinedClip]]:
    """Return a joined clip of one token per recording, and the attention [H, N, S] of these heads [1, N, S] on it."""
    spans = [(token, token + 1) for token in range(len(edges) - 1)]
    seconds = [(start / 50, end / 50) for start, end in pairwise(edges)]
    return [np.concatenate(heads)], [JoinedClip(np.zeros(320 * edges[-1]), [0] * len(spans), spans, seconds)]


def test_an_exact_head_is_found_and_a_late_one_is_not_added() -> None:
    edges = [0, 30, 60, 75, 110]
    noise = np.random.default_rng(0).standard_normal((1, 4, 110))
    late = attention([0, 45, 75, 90, 110])
    chosen, error, alone = best_head_set(*clip_and_attention([noise, attention(edges), late], edges))
    assert chosen == [1]
    assert error == alone[1] <= 20
    assert alone[2] > 100


def test_two_heads_that_are_each_exact_for_a_half_are_chosen_together() -> None:
    edges = [0, 30, 60, 75, 110]
    first, second = attention(edges, noise=0.0), attention(edges, noise=0.0)
    first[:, 2:], second[:, :2] = 0.0, 0.0
    noise = np.random.default_rng(0).random((1, 4, 110))
    chosen, error, alone = best_head_set(*clip_and_attention([first, noise, second], edges))
    assert sorted(chosen) == [0, 2]
    assert error <= 20
    assert alone.min() > 0


def test_speech_is_found_within_a_recording() -> None:
    tone = 0.1 * np.sin(np.arange(8000) * 0.3)
    quiet = 0.0005 * np.random.default_rng(0).standard_normal(16_000)
    samples = np.concatenate([quiet[:3200], tone, quiet[:4800]]).astype(np.float32)
    assert loud_range(samples) == (0.2, 0.7)
    assert trim_silence(samples, 0.0, 1.0) == pytest.approx((0.2, 0.7))
    assert trim_silence(samples, 0.3, 0.5) == pytest.approx((0.3, 0.5))
    assert trim_silence(samples, 2.0, 3.0) == (1.0, 1.0)
    assert loud_range(np.zeros(10, np.float32)) == (0.0, 0.01)


def test_joined_clips_give_the_spans_of_their_recordings(transcriber: Transcriber, speech: Path) -> None:
    rows = [json.loads(line) for line in (speech / "train" / "metadata.jsonl").read_text().splitlines()]
    changes: dict[str, Any] = {"speaker": "one"}
    labels = [
        label(row["file_name"], audio=str(speech / "train" / row["file_name"]), seconds=1.0, **changes) for row in rows
    ]
    clips = list(joined_clips(labels, transcriber, clips=3, seed=0))
    assert len(clips) == 3
    for clip in clips:
        assert 2 <= len(clip.token_spans) == len(clip.speech_spans) <= 8
        texts = [transcriber.tokenizer.decode(clip.tokens[first:stop]) for first, stop in clip.token_spans]
        assert texts == ["text"] * len(clip.token_spans)
        for start, end in clip.speech_spans:
            inside = clip.samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
            assert np.abs(inside[:160]).max() > 0
            assert np.square(inside).mean() > np.square(clip.samples).mean() / 10
    with pytest.raises(UserError, match=r"expected kept training labels of less than 3.5 s, .* found 0"):
        list(joined_clips([label("a", seconds=5.0)], transcriber, clips=3, seed=0))


def test_there_is_a_pause_between_joined_recordings() -> None:
    recording = np.ones(1600, np.float32)
    clip = join_recordings([recording, recording], ["a b", "c"], TOKENIZERS[0], np.random.default_rng(0), 0.5)
    (first, end), (second, _) = clip.speech_spans
    assert (first, end) == (0.0, 0.1)
    assert 0.1 < second < 0.6
    assert clip.samples[round((end + second) / 2 * SAMPLE_RATE)] == 0
    assert [TOKENIZERS[0].decode(clip.tokens[start:stop]) for start, stop in clip.token_spans] == ["a b", "c"]
