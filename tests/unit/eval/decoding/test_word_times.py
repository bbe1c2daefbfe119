"""Word times: the path is the best there is, words are whole, heads are chosen by what they know."""

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
    """Every way from the first cell to the last."""
    if (tokens, positions) == (1, 1):
        return [[(0, 0)]]
    before = [(tokens - 1, positions), (tokens, positions - 1), (tokens - 1, positions - 1)]
    cell = (tokens - 1, positions - 1)
    return [[*path, cell] for size in before if min(size) > 0 for path in paths(*size)]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
@settings(deadline=None)
def test_the_path_is_the_best_of_all(tokens: int, positions: int, seed: int) -> None:
    gain_HNS = np.random.default_rng(seed).standard_normal((2, tokens, positions))
    for gain_NS, starts_N in zip(gain_HNS, token_starts(gain_HNS), strict=True):
        best = max(paths(tokens, positions), key=lambda path: sum(gain_NS[cell] for cell in path))
        assert starts_N.tolist() == [min(place for token, place in best if token == row) for row in range(tokens)]


@given(arrays(np.float64, array_shapes(min_dims=3, max_dims=3, max_side=12), elements=st.integers(-2, 2)))
@settings(deadline=None)
def test_times_never_run_backwards(gain_HNS: np.ndarray) -> None:
    starts_HN = token_starts(gain_HNS)
    assert starts_HN.shape == gain_HNS.shape[:2]
    assert (starts_HN[:, 0] == 0).all()
    assert (np.diff(starts_HN, axis=1) >= 0).all()
    assert starts_HN.max() < gain_HNS.shape[2]


def attention(edges: list[int], seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """One head [1, N, S] that listens to each token from its edge to the next."""
    weights_1NS = noise * np.random.default_rng(seed).random((1, len(edges) - 1, edges[-1]))
    for token, (start, end) in enumerate(pairwise(edges)):
        weights_1NS[0, token, start:end] += 0.1
    picture: np.ndarray = weights_1NS / weights_1NS.sum(axis=-1, keepdims=True)
    return picture


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
def test_words_are_parted_by_spaces(tokenizer: Tokenizer, text: str, words: list[str]) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    found = split_words(tokenizer, tokens)
    assert [word for word, _, _ in found] == words
    for word, first, stop in found:
        assert tokenizer.decode(tokens[first:stop]).strip() == word


def test_a_script_without_spaces_is_parted_where_tokens_are() -> None:
    (single, pairs) = (
        split_words(tokenizer, tokenizer.encode("你好世界", add_special_tokens=False).ids) for tokenizer in TOKENIZERS
    )
    assert [word for word, _, _ in single] == ["你", "好", "世", "界"]
    assert "".join(word for word, _, _ in pairs) == "你好世界"
    assert all(before[2] <= after[1] for before, after in pairwise(pairs))


@given(st.text(max_size=30))
@settings(deadline=None)
def test_no_letter_is_lost_and_no_token_taken_twice(text: str) -> None:
    tokenizer = TOKENIZERS[0]
    tokens = tokenizer.encode(f" {text}", add_special_tokens=False).ids
    found = split_words(tokenizer, tokens)
    decoded = tokenizer.decode(tokens)
    assert "".join("".join(word.split()) for word, _, _ in found) == "".join(decoded.split())
    assert all(before[2] <= after[1] for before, after in pairwise(found))


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher with alignment heads."""
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
    timer = WordTimer.of(transcriber, timed)
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


def test_what_gives_no_word_times_says_what_to_do(transcriber: Transcriber, timed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected alignment_heads .* found none; write them with `python -m distill"):
        WordTimer.of(transcriber, TEACHER)
    with pytest.raises(UserError, match="which --runtime torch alone gives"):
        WordTimer.of(Transcriber.with_runtime(transcriber, None), timed)  # type: ignore[arg-type]
    (tmp_path / "generation_config.json").write_text('{"alignment_heads": [[4, 0]]}')
    with pytest.raises(UserError, match=r"within 4 decoder layers of 3 heads, found \[\[4, 0\]\]"):
        WordTimer.of(transcriber, tmp_path)


def test_the_command_tells_words_of_a_clip_and_of_what_is_longer(
    timed: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = speech / "train" / "000000.flac"
    long = np.concatenate([read_audio(clip)] * 6)
    assert len(long) > 7 * SAMPLE_RATE
    soundfile.write(tmp_path / "long.wav", long, SAMPLE_RATE)
    asked = ["transcribe", "--words", "--threads", "1", str(timed), str(clip)]
    monkeypatch.setattr(sys, "argv", [*asked, str(tmp_path / "long.wav"), "--format", "json"])
    transcribe.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        assert " ".join(word["word"] for word in row["words"]) == row["text"]
        times = [time for word in row["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times)
        assert times[-1] <= row["seconds"] + 0.01
    assert rows[1]["words"][-1]["start"] > 7
    monkeypatch.setattr(sys, "argv", [*asked, "--format", "srt", "--out", str(tmp_path)])
    transcribe.main()
    cues = (tmp_path / "000000.srt").read_text().strip().split("\n\n")
    assert [cue.splitlines()[-1] for cue in cues] == rows[0]["text"].split()


def known(heads: list[np.ndarray], edges: list[int]) -> tuple[list[np.ndarray], list[JoinedClip]]:
    """One string of a token a piece, as these heads [1, N, S] see it."""
    spans = [(token, token + 1) for token in range(len(edges) - 1)]
    seconds = [(start / 50, end / 50) for start, end in pairwise(edges)]
    return [np.concatenate(heads)], [JoinedClip(np.zeros(320 * edges[-1]), [0] * len(spans), spans, seconds)]


def test_the_head_that_knows_is_found_and_one_that_does_not_is_not_added() -> None:
    edges = [0, 30, 60, 75, 110]
    noise = np.random.default_rng(0).standard_normal((1, 4, 110))
    late = attention([0, 45, 75, 90, 110])
    pictures, made = known([noise, attention(edges), late], edges)
    chosen, error, alone = best_head_set(pictures, made)
    assert chosen == [1]
    assert error == alone[1] <= 20
    assert alone[2] > 100


def test_two_heads_that_know_a_half_each_are_chosen_together() -> None:
    edges = [0, 30, 60, 75, 110]
    first, second = attention(edges, noise=0.0), attention(edges, noise=0.0)
    first[:, 2:], second[:, :2] = 0.0, 0.0
    noise = np.random.default_rng(0).random((1, 4, 110))
    pictures, made = known([first, noise, second], edges)
    chosen, error, alone = best_head_set(pictures, made)
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


def test_strings_know_where_their_pieces_are(transcriber: Transcriber, speech: Path) -> None:
    rows = [json.loads(line) for line in (speech / "train" / "metadata.jsonl").read_text().splitlines()]
    changes: dict[str, Any] = {"speaker": "one"}
    labels = [
        label(row["file_name"], audio=str(speech / "train" / row["file_name"]), seconds=1.0, **changes) for row in rows
    ]
    made = list(joined_clips(labels, transcriber, clips=3, seed=0))
    assert len(made) == 3
    for one in made:
        assert 2 <= len(one.spans) == len(one.seconds) <= 8
        said = [transcriber.tokenizer.decode(one.tokens[first:stop]) for first, stop in one.spans]
        assert said == ["text"] * len(one.spans)
        for start, end in one.seconds:
            inside = one.samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
            assert np.abs(inside[:160]).max() > 0
            assert np.square(inside).mean() > np.square(one.samples).mean() / 10
    with pytest.raises(UserError, match=r"expected kept training labels of less than 3.5 s, .* found 0"):
        list(joined_clips([label("a", seconds=5.0)], transcriber, clips=3, seed=0))


def test_a_pause_lies_between_pieces() -> None:
    piece = np.ones(1600, np.float32)
    one = join_recordings([piece, piece], ["a b", "c"], TOKENIZERS[0], np.random.default_rng(0), 0.5)
    (first, end), (second, _) = one.seconds
    assert (first, end) == (0.0, 0.1)
    assert 0.1 < second < 0.6
    assert one.samples[round((end + second) / 2 * SAMPLE_RATE)] == 0
    assert [TOKENIZERS[0].decode(one.tokens[start:stop]) for start, stop in one.spans] == ["a b", "c"]
