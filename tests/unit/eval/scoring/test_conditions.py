"""The conditions under which systems transcribe, and the scores of their texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from eval.audio.noise import COLOURS, load_noise, root_mean_square
from eval.audio.utterances import Utterance
from eval.scoring.accuracy_rows import WorseClip
from eval.scoring.conditions import (
    Condition,
    EvalClip,
    clean_condition,
    long_form_conditions,
    noise_only_condition,
    noisy_conditions,
)
from eval.scoring.error_rates import normalizer
from eval.scoring.scorer import Scorer
from recipes.core.errors import UserError
from recipes.schema.eval_section import LongFormOptions, NoiseOptions
from tests.conftest import TEACHER


@pytest.fixture
def test_set(tmp_path: Path) -> Condition:
    """Two sets, of 12 and 8 tones of two speakers each."""
    items = []
    for index in range(20):
        name, source = f"{index}.wav", "a" if index < 12 else "b"
        soundfile.write(tmp_path / name, 0.2 * np.sin(np.arange(8_000 + 100 * index) / (2 + index)), 16_000)
        items.append(Utterance(
            id=f"{source}/test/{name}", source=source, split="test", audio=[str(tmp_path / name)], text=f"tone {index}",
            seconds=(8_000 + 100 * index) / 16_000, speaker=f"s{index % 2}", language=None, parts=[], part_seconds=[],
            sha256="",
        ))  # fmt: skip
    return clean_condition(items)


def test_noise_is_the_same_each_time_and_as_loud_as_asked(test_set: Condition) -> None:
    settings = NoiseOptions(snr_db=[0, 20], utterances=4)
    made, again = noisy_conditions(test_set, settings, 7), noisy_conditions(test_set, settings, 7)
    assert [condition.name for condition in made] == ["noise-20dB", "noise-0dB"]
    assert [[clip.id for clip in condition.clips] for condition in made] == [
        [test_set.clips[index].id for index in (0, 3, 6, 9, 12, 14, 16, 18)]
    ] * 2, "evenly spaced, of each set as many"
    for condition, same in zip(made, again, strict=True):
        for clip, other, index in zip(condition.clips, same.clips, condition.parts, strict=True):
            heard, quiet = clip.read(), test_set.clips[index].read()
            np.testing.assert_array_equal(heard, other.read())
            assert 20 * np.log10(root_mean_square(quiet) / root_mean_square(heard - quiet)) == pytest.approx(
                condition.snr_db, abs=0.01
            )
    loud, soft = (condition.clips[0].read() - test_set.clips[0].read() for condition in (made[1], made[0]))
    np.testing.assert_allclose(soft, loud / 10, atol=1e-5), "the same noise at every ratio"
    assert not np.array_equal(noisy_conditions(test_set, settings, 8)[0].clips[0].read(), made[0].clips[0].read())


def test_noise_made_here_has_its_colour() -> None:
    for name, power in COLOURS.items():
        spectrum = np.abs(np.fft.rfft(load_noise(name))) ** 2
        low, high = spectrum[3_000:6_000].mean(), spectrum[96_000:192_000].mean()
        assert 10 * np.log10(low / high) == pytest.approx(power * 10 * np.log10(32), abs=0.5)


def test_nobody_speaks_in_silence_and_noise(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hum-noise.wav", np.random.default_rng(0).normal(0, 0.1, 4_000), 16_000)
    soundfile.write(tmp_path / "room.wav", np.ones(100) / 2, 16_000)
    heard = noise_only_condition(NoiseOptions(folder=tmp_path, files=["*noise*"], alone=3), 16_000, 0)
    assert [clip.id for clip in heard.clips] == ["silence", "hum-noise-0", "hum-noise-1", "hum-noise-2"]
    assert not heard.clips[0].read().any()
    assert all(len(clip.read()) == 16_000 and clip.read().std() > 0.05 for clip in heard.clips[1:])
    with pytest.raises(UserError, match=r"eval\.noise\.folder: expected audio \(\*\.mp3\)"):
        noise_only_condition(NoiseOptions(folder=tmp_path, files=["*.mp3"]), 16_000, 0)


@given(seconds=st.floats(0.1, 30), recordings=st.integers(1, 9), pause=st.floats(0, 1))
def test_joined_recordings_hold_each_utterance_once(seconds: float, recordings: int, pause: float) -> None:
    clips = [
        EvalClip(str(index), "ab"[index > 11], 0.5, f"w{index}", lambda: np.ones(8_000), f"s{index % 2}")
        for index in range(20)
    ]
    settings = LongFormOptions(
        joined_seconds=seconds, recordings=recordings, pause_seconds=pause, modes=["chunked"]
    )  # fmt: skip
    (joined,) = long_form_conditions(Condition("", clips), settings, 0)
    parts = [part for clip in joined.clips for part in clip.parts]
    assert len(parts) == len(set(parts))
    for clip in joined.clips:
        assert clip.text == " ".join(clips[part].text for part in clip.parts)
        assert {clips[part].set for part in clip.parts} == {clip.set}
        assert len(clip.read()) / 16_000 == pytest.approx(clip.seconds, abs=0.01)
    assert max(sum(clip.set == name for clip in joined.clips) for name in "ab") <= recordings
    if recordings == 9 and seconds > 2:
        assert len(parts) == 20, "the rest makes a shorter one"


def test_a_folder_of_long_recordings(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", np.zeros(160_000), 16_000)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "talk.wav", "text": "nothing at all"}) + "\n")
    sequential, chunked = long_form_conditions(Condition("", []), LongFormOptions(folder=tmp_path), 0)
    assert (sequential.mode, chunked.mode) == ("sequential", "chunked")
    (clip,) = chunked.clips
    assert (clip.text, clip.seconds, clip.set, len(clip.read())) == ("nothing at all", 10.0, tmp_path.name, 160_000)
    (tmp_path / "talk.wav").unlink()
    with pytest.raises(UserError, match=r"talk\.wav: no such file"):
        long_form_conditions(Condition("", []), LongFormOptions(folder=tmp_path), 0)


def scored(
    references: list[str], teacher: list[str], mine: list[str], **more: Any
) -> tuple[Scorer, Condition, dict[str, list[str]], dict[str, list[str]]]:
    clips = [EvalClip(str(index), "s", 1.0, text, lambda: np.zeros(1)) for index, text in enumerate(references)]
    scorer = Scorer(100, 0, normalizer("basic", TEACHER))
    return scorer, Condition("", clips), {"": mine, **more}, {"": teacher}


def test_regressions_are_counted_clip_by_clip_and_the_worst_come_first() -> None:
    references = ["one two", "three", "four", "five six"]
    scorer, test, mine, teacher = scored(
        references, ["One two", "tree", "four", "five"], ["on to", "three", "for", "five"]
    )
    found = scorer.regression(test, mine, teacher)
    assert (found.clips, found.worse, found.better) == (4, 0.5, 0.25)
    assert [(row.id, row.teacher_errors, row.errors) for row in found.worst] == [("0", 0, 2), ("2", 0, 1)]
    assert found.worst[0] == WorseClip(
        id="0", set="s", reference="one two", teacher="one two", text="on to", errors=2, teacher_errors=0, words=2
    )


def test_invented_words_are_counted() -> None:
    references, said = ["no no no", "stop", "go"], ["no no no", "stop it it it it", "go"]
    scorer, test, mine, _ = scored(references, references, said, alone=["", "thank you"])
    silence = Condition("alone", [EvalClip(name, "", 6.0, "", lambda: np.zeros(1)) for name in ("silence", "pink-0")])
    found = scorer.hallucination(test, silence, mine)
    assert found.insertion_rate.value == pytest.approx(100 * 4 / 5)
    assert (found.loops, found.looping[0].id) == (1, "1"), "what is said three times is no loop"
    assert found.alone is not None
    assert (found.alone.with_words, found.alone.words, found.alone.words_per_minute) == (1, 2, 10.0)


def test_a_joined_recording_is_held_against_its_utterances_one_by_one() -> None:
    scorer, _, mine, _ = scored(["one", "two"], [], ["one", "to"], **{"long-chunked": ["one two two"]})
    whole = Condition(
        "long-chunked", [EvalClip("j", "s", 2.0, "one two", lambda: np.zeros(1), parts=(0, 1))], "chunked"
    )
    found = scorer.long_form([whole], mine)["s"]
    assert {mode: (row.wer.value, row.substitutions, row.insertions) for mode, row in found.items()} == {
        "chunked": (50.0, 0, 1), "separate": (50.0, 1, 0)
    }  # fmt: skip
