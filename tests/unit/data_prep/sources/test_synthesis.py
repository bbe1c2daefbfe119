"""Tests of speech synthesis; they run espeak-ng."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.sources.synthesis import VOICES, read_sentences, speak, spell_single_letters, synthesize
from recipes.core.errors import UserError
from tests.conftest import ROOT

SENTENCES = (
    "one two three",
    "c a t",
    "erase c q q f seven",
    "go",
    "march third nineteen seventy",
    "enter six",
)


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    rows = synthesize(SENTENCES, VOICES, tmp_path / "complete", seed=3)
    # The first, third and last file are missing, as after interrupted runs; the others are kept.
    synthesize(SENTENCES, VOICES, tmp_path / "resumed", seed=3)
    kept = tmp_path / "resumed" / "000001.flac"
    for place in (0, 2, 5):
        (tmp_path / "resumed" / f"{place:06d}.flac").unlink()
    written = kept.stat().st_mtime_ns
    assert synthesize(SENTENCES, VOICES, tmp_path / "resumed", seed=3) == rows
    assert kept.stat().st_mtime_ns == written
    assert hashes(tmp_path / "resumed") == hashes(tmp_path / "complete")
    assert sorted(hashes(tmp_path / "complete")) == [row["file_name"] for row in rows]


def test_seeds_differ(tmp_path: Path) -> None:
    synthesize(SENTENCES[:2], VOICES, tmp_path / "a", seed=1)
    synthesize(SENTENCES[:2], VOICES, tmp_path / "b", seed=2)
    assert not set(hashes(tmp_path / "a").values()) & set(hashes(tmp_path / "b").values())


@pytest.mark.parametrize("voice", VOICES)
def test_an_utterance_does_not_depend_on_the_one_before(voice: str) -> None:
    first, _ = speak("erase c q q f seven", voice, rate=150, pitch=50)
    speak("help", voice, rate=170, pitch=40)
    again, _ = speak("erase c q q f seven", voice, rate=150, pitch=50)
    np.testing.assert_array_equal(first, again)


def test_rate_and_pitch_change_the_speech() -> None:
    slow, rate = speak("one two three", VOICES[0], rate=100, pitch=50)
    fast, _ = speak("one two three", VOICES[0], rate=200, pitch=50)
    high, _ = speak("one two three", VOICES[0], rate=100, pitch=90)
    assert rate == 22_050
    assert len(slow) > 1.2 * len(fast)
    assert not np.array_equal(slow, high)


def test_clips_are_16_khz_mono_and_of_sane_level(tmp_path: Path) -> None:
    rows = synthesize(SENTENCES, VOICES, tmp_path, seed=0)
    assert [row["text"] for row in rows] == list(SENTENCES)
    for row in rows:
        samples, rate = soundfile.read(tmp_path / row["file_name"])
        assert (rate, samples.ndim) == (16_000, 1)
        assert row["seconds"] == pytest.approx(len(samples) / 16_000, abs=1e-3)
        assert 0.4 < row["seconds"] < 6
        assert 0.15 < np.abs(samples).max() <= 1
        assert np.sqrt((samples**2).mean()) > 0.01
        # Noise, not digital silence, before the speech; and quieter than it.
        assert 0 < np.sqrt((samples[:1500] ** 2).mean()) < 0.3 * np.sqrt((samples**2).mean())
        assert row["speaker"] in VOICES


def test_an_a_next_to_letters_is_read_as_the_letter() -> None:
    assert spell_single_letters("c a t") == "c [['eI]] t"
    assert spell_single_letters("erase a b nine") == "erase [['eI]] b nine"
    assert spell_single_letters("enter a number") == "enter a number"
    letter, rate = speak("c a t", VOICES[0], rate=150, pitch=50)
    # espeak-ng reads an `a` that is not marked as a schwa, which is shorter than the letter's diphthong.
    article, _ = speak("c [[a#]] t", VOICES[0], rate=150, pitch=50)
    assert len(letter) > len(article) + 0.05 * rate


def test_unknown_voices_are_refused() -> None:
    for voice in ("nonsense", "en-us+nosuch"):
        with pytest.raises(UserError, match=f"found {voice.replace('+', '.')}; correct it"):
            speak("go", voice, rate=150, pitch=50)


def test_an_unknown_voice_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nonsense"):
        synthesize(SENTENCES, ["en-us", "nonsense"], tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()


def test_text_without_words_is_refused() -> None:
    with pytest.raises(UserError, match="expected words to speak"):
        speak("", VOICES[0], rate=150, pitch=50)


def test_missing_or_empty_sentences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt"):
        read_sentences(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="expected a sentence on each line"):
        read_sentences(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="expected sentences"):
        synthesize([], VOICES, tmp_path, seed=0)


def test_a_missing_extra_is_reported_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install 'sottovoce\[synthesis\]'"):
        speak("go", VOICES[0], rate=150, pitch=50)


def test_the_demo_sentences_are_those_of_the_grammar() -> None:
    folder = ROOT / "recipes" / "demo"
    sys.path.insert(0, str(folder))
    try:
        from make_sentences import sentences
    finally:
        sys.path.remove(str(folder))
    lines = read_sentences(folder / "sentences.txt")
    assert lines == [sentence for _, sentence in sentences()]
    assert len(set(lines)) == len(lines)
    assert all(line == line.lower() for line in lines)
