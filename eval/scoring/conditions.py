"""What every system transcribes: the test set as it is, under noise, noise alone, joined to long recordings."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from eval.audio.audiofolder import read_metadata
from eval.audio.noise import COLOURS, add_noise, load_noise, loop_noise, noise_files
from eval.audio.recordings import SAMPLE_RATE, AudioError, AudioReference, duration_of, read_audio
from eval.audio.utterances import Utterance
from eval.decoding.long_form import Mode
from recipes.core.errors import UserError
from recipes.schema.eval_section import LongFormOptions, NoiseOptions


@dataclass(frozen=True)
class TestClip:
    """Something to transcribe."""

    id: str
    set: str
    """Its test set."""
    seconds: float
    text: str
    """What is said in it; empty where there is no speech."""
    read: Callable[[], np.ndarray]
    """Its samples [N] at 16 kHz."""
    speaker: str = ""
    parts: tuple[int, ...] = ()
    """Of a joined recording: places of its utterances in the test set."""


@dataclass(frozen=True)
class Condition:
    """Clips heard in one way; a file of hypotheses for each system."""

    name: str
    """Of the file; empty for the test set as it is."""
    clips: Sequence[TestClip]
    mode: Mode | None = None
    """How long recordings are read; None for clips within the window."""
    snr_db: float | None = None
    """Of noise laid under the clips, dB."""
    parts: tuple[int, ...] = ()
    """Places of the clips in the test set, where they are a part of it."""


def clean_condition(test: Sequence[Utterance]) -> Condition:
    """The test set as it is."""
    clips = [
        TestClip(
            item.id, item.source, item.seconds, item.text or "", partial(read_audio, item.audio), item.speaker or ""
        )
        for item in test
    ]
    return Condition("", clips)


def noisy_conditions(test: Condition, settings: NoiseOptions, seed: int) -> list[Condition]:
    """A part of each test set at each ratio, from the least noise to the most."""
    names, conditions = _noises(settings), []
    parts = tuple(
        index
        for chosen in clips_by_test_set(test.clips).values()
        for index in chosen[:: max(1, len(chosen) // settings.utterances)][: settings.utterances]
    )
    for snr_db in sorted(settings.snr_db, reverse=True):
        clips = [
            replace(clip, read=partial(_under_noise, clip, names, snr_db, seed))
            for clip in (test.clips[index] for index in parts)
        ]
        conditions.append(Condition(f"noise-{snr_db:g}dB", clips, snr_db=snr_db, parts=parts))
    return conditions


def noise_only_condition(settings: NoiseOptions, window_samples: int, seed: int) -> Condition:
    """Windows of digital silence and of noise, where nobody speaks."""
    seconds, names = window_samples / SAMPLE_RATE, _noises(settings)
    clips = [TestClip("silence", "", seconds, "", partial(np.zeros, window_samples, np.float32))]
    for index in range(settings.alone):
        name = names[index % len(names)]
        where = f"{Path(name).stem}-{index // len(names)}"
        clips.append(TestClip(where, "", seconds, "", partial(_only_noise, name, where, window_samples, seed)))
    return Condition("alone", clips)


def long_form_conditions(test: Condition, settings: LongFormOptions, seed: int) -> list[Condition]:
    """Long recordings, in each mode."""
    clips = list(_in_folder(settings) if settings.folder else _joined(test, settings, seed))
    if not clips:
        raise UserError(f"eval.long_form.folder {settings.folder}: expected recordings with text, found none; add some")
    return [Condition(f"long-{mode}", clips, mode) for mode in settings.modes]


def _in_folder(settings: LongFormOptions) -> Iterator[TestClip]:
    assert settings.folder is not None
    rows = [row for row in read_metadata(settings.folder, "eval.long_form.folder") if row[1].get("text")]
    for name, row in rows[: settings.recordings]:
        path = settings.folder / name
        try:
            seconds = duration_of(AudioReference(path))
        except AudioError as error:
            raise UserError(f"{path}: {error}; mend it or take it out of the metadata") from error
        yield TestClip(name, settings.folder.name, seconds, row["text"], partial(read_audio, str(path)))


def _joined(test: Condition, settings: LongFormOptions, seed: int) -> Iterator[TestClip]:
    """Utterances speaker by speaker, in a drawn order since neighbours often say the same; each once at most."""
    for name, chosen in clips_by_test_set(test.clips).items():
        drawn = np.random.default_rng(seed).permutation(chosen).tolist()
        order = sorted(drawn, key=lambda index: test.clips[index].speaker)
        made, parts, seconds = 0, list[int](), 0.0
        for index in order:
            parts.append(index)
            seconds += test.clips[index].seconds + settings.pause_seconds
            if made < settings.recordings and (seconds >= settings.joined_seconds or index == order[-1]):
                clips = [test.clips[part] for part in parts]
                text = " ".join(clip.text for clip in clips)
                read = partial(_join, clips, settings.pause_seconds)
                yield TestClip(f"{name}/joined-{made}", name, seconds, text, read, parts=tuple(parts))
                made, parts, seconds = made + 1, [], 0.0


def clips_by_test_set(clips: Sequence[TestClip]) -> dict[str, list[int]]:
    """The places of each test set's clips, in order."""
    places: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        places.setdefault(clip.set, []).append(index)
    return places


def _noises(settings: NoiseOptions) -> tuple[str, ...]:
    return noise_files("eval.noise.folder", settings.folder, settings.files) or tuple(COLOURS)


def _under_noise(clip: TestClip, names: Sequence[str], snr_db: float, seed: int) -> np.ndarray:
    draw = _draw(seed, clip.id)
    noise = _noise(names[int(draw.integers(len(names)))])
    return add_noise(clip.read(), noise, snr_db, int(draw.integers(len(noise)))).astype(np.float32)


def _only_noise(name: str, where: str, samples: int, seed: int) -> np.ndarray:
    noise = _noise(name)
    return loop_noise(noise, samples, int(_draw(seed, where).integers(len(noise))))


def _noise(name: str) -> np.ndarray:
    try:
        return load_noise(name)
    except AudioError as error:
        raise UserError(f"{name}: {error}; mend it or take it out of eval.noise.folder") from error


def _join(clips: Sequence[TestClip], pause_seconds: float) -> np.ndarray:
    pause = np.zeros(round(pause_seconds * SAMPLE_RATE), np.float32)
    return np.concatenate([part for clip in clips for part in (clip.read(), pause)])


def _draw(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(f"{seed} {name}".encode()).digest()))
