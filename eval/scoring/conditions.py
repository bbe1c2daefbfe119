"""The conditions under which every system transcribes: the test set as it is, with added noise, noise without speech,
and long recordings."""

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
from recipes.schema.eval_section import EvalSection, LongFormOptions, NoiseOptions


@dataclass(frozen=True)
class EvalClip:
    """One clip or recording to transcribe."""

    id: str
    set: str
    """Name of its test set."""
    seconds: float
    text: str
    """Reference transcript; empty if there is no speech."""
    read: Callable[[], np.ndarray]
    """Return its samples [N] at 16 kHz."""
    speaker: str = ""
    """Empty if unknown."""
    parts: tuple[int, ...] = ()
    """For a recording joined from utterances: their indices in the test set."""


@dataclass(frozen=True)
class Condition:
    """Clips under one acoustic condition; every system writes one file of hypotheses for each."""

    name: str
    """Part of the file's name; empty for the test set as it is."""
    clips: Sequence[EvalClip]
    mode: Mode | None = None
    """How recordings longer than the window are transcribed; None for clips within the window."""
    snr_db: float | None = None
    """Signal-to-noise ratio of added noise, in dB; None without noise."""
    parts: tuple[int, ...] = ()
    """Indices of the clips in the test set, if they are only a part of it."""


@dataclass(frozen=True)
class EvalConditions:
    """All conditions of one evaluation."""

    test: Condition
    """The test set as it is."""
    noisy: Sequence[Condition]
    """A part of the test set with added noise, from the highest to the lowest signal-to-noise ratio."""
    silence: Condition | None
    """Silence and noise without speech."""
    long_form: Sequence[Condition]
    """The same long recordings in every mode."""

    @classmethod
    def make(
        cls, utterances: Sequence[Utterance], section: EvalSection, window_samples: int, seed: int
    ) -> "EvalConditions":
        """Prepare the conditions that `section` asks for.

        Args:
            utterances: Test utterances with a transcript.
            section: The recipe's `eval` section.
            window_samples: Length of a window without speech: that of the teacher.
            seed: Seed for the choice of noises and the order of joined utterances.
        """
        test = clean_condition(utterances)
        return cls(
            test,
            noisy_conditions(test, section.noise, seed) if section.noise else (),
            noise_only_condition(section.noise, window_samples, seed) if section.noise else None,
            long_form_conditions(test, section.long_form, seed) if section.long_form else (),
        )

    @property
    def all(self) -> list[Condition]:
        """All conditions in the order in which they are transcribed."""
        return [self.test, *self.noisy, *([self.silence] if self.silence else []), *self.long_form]


def clean_condition(utterances: Sequence[Utterance]) -> Condition:
    """Return the test set as it is."""
    clips = [
        EvalClip(
            utterance.id, utterance.source, utterance.seconds, utterance.text or "",
            partial(read_audio, utterance.audio), utterance.speaker or "",
        )
        for utterance in utterances
    ]  # fmt: skip
    return Condition("", clips)


def noisy_conditions(test: Condition, options: NoiseOptions, seed: int) -> list[Condition]:
    """Return `options.utterances` evenly spaced clips of each test set at each ratio, the highest ratio first.

    A clip gets the same noise, from the same position on, at all ratios.
    """
    names, conditions = _noise_names(options), []
    parts = tuple(
        index
        for indices in clips_by_test_set(test.clips).values()
        for index in indices[:: max(1, len(indices) // options.utterances)][: options.utterances]
    )
    for snr_db in sorted(options.snr_db, reverse=True):
        clips = [
            replace(clip, read=partial(_read_with_noise, clip, names, snr_db, seed))
            for clip in (test.clips[index] for index in parts)
        ]
        conditions.append(Condition(f"noise-{snr_db:g}dB", clips, snr_db=snr_db, parts=parts))
    return conditions


def noise_only_condition(options: NoiseOptions, window_samples: int, seed: int) -> Condition:
    """Return one window of digital silence and `options.alone` windows of noise, in which nobody speaks."""
    seconds, names = window_samples / SAMPLE_RATE, _noise_names(options)
    clips = [EvalClip("silence", "", seconds, "", partial(np.zeros, window_samples, np.float32))]
    for index in range(options.alone):
        name = names[index % len(names)]
        clip_id = f"{Path(name).stem}-{index // len(names)}"
        clips.append(EvalClip(clip_id, "", seconds, "", partial(_read_noise, name, clip_id, window_samples, seed)))
    return Condition("alone", clips)


def long_form_conditions(test: Condition, options: LongFormOptions, seed: int) -> list[Condition]:
    """Return the long recordings once for each mode. Raises UserError if the folder has none with a transcript."""
    clips = list(_recordings_in_folder(options) if options.folder else _joined_recordings(test, options, seed))
    if not clips:
        raise UserError(f"eval.long_form.folder {options.folder}: expected recordings with text, found none; add some")
    return [Condition(f"long-{mode}", clips, mode) for mode in options.modes]


def _recordings_in_folder(options: LongFormOptions) -> Iterator[EvalClip]:
    assert options.folder is not None
    rows = [row for row in read_metadata(options.folder, "eval.long_form.folder") if row[1].get("text")]
    for name, columns in rows[: options.recordings]:
        path = options.folder / name
        try:
            seconds = duration_of(AudioReference(path))
        except AudioError as error:
            raise UserError(f"{path}: {error}; repair it or remove it from the metadata") from error
        yield EvalClip(name, options.folder.name, seconds, columns["text"], partial(read_audio, str(path)))


def _joined_recordings(test: Condition, options: LongFormOptions, seed: int) -> Iterator[EvalClip]:
    """Join utterances speaker by speaker, each utterance at most once.

    Their order is random, since neighbouring utterances of a corpus often have the same text.
    """
    for name, indices in clips_by_test_set(test.clips).items():
        shuffled = np.random.default_rng(seed).permutation(indices).tolist()
        order = sorted(shuffled, key=lambda index: test.clips[index].speaker)
        recordings, parts, seconds = 0, list[int](), 0.0
        for index in order:
            parts.append(index)
            seconds += test.clips[index].seconds + options.pause_seconds
            if recordings < options.recordings and (seconds >= options.joined_seconds or index == order[-1]):
                clips = [test.clips[part] for part in parts]
                text = " ".join(clip.text for clip in clips)
                read = partial(_read_joined, clips, options.pause_seconds)
                yield EvalClip(f"{name}/joined-{recordings}", name, seconds, text, read, parts=tuple(parts))
                recordings, parts, seconds = recordings + 1, [], 0.0


def clips_by_test_set(clips: Sequence[EvalClip]) -> dict[str, list[int]]:
    """Return by test set the indices of its clips, in order."""
    indices: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        indices.setdefault(clip.set, []).append(index)
    return indices


def _noise_names(options: NoiseOptions) -> tuple[str, ...]:
    return noise_files("eval.noise.folder", options.folder, options.files) or tuple(COLOURS)


def _read_with_noise(clip: EvalClip, names: Sequence[str], snr_db: float, seed: int) -> np.ndarray:
    rng = _generator(seed, clip.id)
    noise = _load_noise(names[int(rng.integers(len(names)))])
    return add_noise(clip.read(), noise, snr_db, int(rng.integers(len(noise)))).astype(np.float32)


def _read_noise(name: str, clip_id: str, samples: int, seed: int) -> np.ndarray:
    noise = _load_noise(name)
    return loop_noise(noise, samples, int(_generator(seed, clip_id).integers(len(noise))))


def _load_noise(name: str) -> np.ndarray:
    try:
        return load_noise(name)
    except AudioError as error:
        raise UserError(f"{name}: {error}; repair it or remove it from eval.noise.folder") from error


def _read_joined(clips: Sequence[EvalClip], pause_seconds: float) -> np.ndarray:
    pause = np.zeros(round(pause_seconds * SAMPLE_RATE), np.float32)
    return np.concatenate([part for clip in clips for part in (clip.read(), pause)])


def _generator(seed: int, name: str) -> np.random.Generator:
    """Return a random generator that depends only on the seed and a name, not on the order of calls."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed} {name}".encode()).digest()))
