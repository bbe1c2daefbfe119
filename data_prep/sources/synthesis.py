"""Generate a synthetic corpus with many voices from sentences, with espeak-ng from the `espeakng-loader` wheel.

espeak-ng is licensed under GPL-3.0. It is an optional tool that produces audio; it is loaded at run time through ctypes
and is never part of a student.
"""

import _ctypes
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
import soundfile
import soxr

from eval.audio.recordings import SAMPLE_RATE
from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError
from recipes.core.progress import track

VOICES = (
    "en-us", "en-us+m1", "en-us+m4", "en-us+m5", "en-us+m6", "en-us+m7", "en-us+rob", "en-us-nyc", "en-us+f1"
)  # fmt: skip
"""Default voices: accent and variant of espeak-ng. Of 25 voices that were tried with 64 sentences each, the demo's
teacher recognizes these best, with a WER of 21 % to 24 %; the WER of the others goes up to 36 %."""

RATE_WPM, PITCH = (145, 176), (30, 56)
"""Ranges, end excluded, of each utterance's speaking rate in words per minute and espeak-ng pitch (0 to 100)."""

SNR_DB, PEAK, SILENCE_S = (25.0, 40.0), (0.2, 0.8), (0.1, 0.3)
"""Ranges of each utterance's signal-to-noise ratio (white noise, in dB), peak level, and silence before and after the
speech in seconds. The WER of the demo's teacher is 18 % at 30 dB, 22 % at 20 dB and 25 % at 15 dB."""

WORD_GAP = 10
"""Pause between words in units of 10 ms. Without it, spelled letters run together and are misrecognized."""

# Constants of espeak-ng's speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS; espeakCHARS_UTF8 | espeakPHONEMES; three values of
# espeak_PARAMETER.
_SYNCHRONOUS, _UTF8_PHONEMES, _RATE, _PITCH, _WORD_GAP = 2, 1 | 0x100, 1, 3, 7
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class SynthesizedClip(TypedDict):
    """A generated audio file, as a row of an audiofolder's metadata.jsonl."""

    file_name: str
    text: str
    speaker: str
    """The voice."""
    seconds: float


def read_sentences(file: Path) -> list[str]:
    """Return the lines of a text file that are not empty. Raises UserError when there are none."""
    key = f"corpus.sources.synthesis.sentences {file}"
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: expected a text file, found {error}; correct the path") from error
    if not any(lines):
        raise UserError(f"{key}: expected a sentence on each line, found none; write some")
    return [line for line in lines if line]


def _espeak_paths() -> tuple[str, str]:
    """Return the paths of the library and of its data folder. Raises UserError when the extra is not installed."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "corpus.sources.synthesis: expected the espeakng-loader package, found none; "
            "pip install 'sottovoce[synthesis]'"
        ) from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


class _Espeak:
    """Context manager that loads espeak-ng in the state of a fresh process and unloads it, which takes 8 ms.

    Breath noise, flutter and echo continue from one utterance to the next in static variables that espeak_Terminate
    does not reset; unloading the library does.
    """

    def __enter__(self) -> Self:
        library, data = _espeak_paths()
        self.library = ctypes.CDLL(library)
        ctypes.CDLL(None).srand(1)
        self.sample_rate = int(self.library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), 0))
        assert self.sample_rate > 0, "espeak-ng did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.library.espeak_Terminate()
        _ctypes.dlclose(self.library._handle)

    def set_voice(self, voice: str) -> None:
        """Choose the voice. Raises UserError for one that espeak-ng does not have."""
        variant = voice.partition("+")[2]
        # espeak-ng refuses an unknown language but silently ignores an unknown variant.
        known = not variant or (Path(_espeak_paths()[1]) / "voices" / "!v" / variant).is_file()
        if not known or self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(
                f"corpus.sources.synthesis.voices: expected an espeak-ng voice such as {VOICES[0]}, "
                f"found {voice}; correct it"
            )


def speak(text: str, voice: str, *, rate: int, pitch: int) -> tuple[np.ndarray, int]:
    """Synthesize a text; equal arguments give equal samples.

    Returns float32 samples [N] and their sampling rate in Hz. Raises UserError for an unknown voice, or for a text
    without any word to speak.
    """
    blocks: list[np.ndarray] = []

    def receive(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(receive)  # this reference keeps it alive until synthesis has ended
    data = (spell_single_letters(text) if voice.startswith("en") else text).encode() + b"\0"
    with _Espeak() as espeak:
        espeak.set_voice(voice)
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_WORD_GAP, WORD_GAP)):
            espeak.library.espeak_SetParameter(parameter, value, 0)
        espeak.library.espeak_SetSynthCallback(callback)
        espeak.library.espeak_Synth(data, len(data), 0, 1, 0, _UTF8_PHONEMES, None, None)
        espeak.library.espeak_Synchronize()
    samples = np.concatenate([np.zeros(0, np.int16), *blocks])
    if not samples.any():
        raise UserError(f"corpus.sources.synthesis: expected words to speak, found {text!r}; remove the line")
    return samples.astype(np.float32) / 32768, espeak.sample_rate


def spell_single_letters(text: str) -> str:
    """Write an `a` that is next to another single letter as a phoneme, so that it is read as the letter.

    espeak-ng reads such an `a`, even in upper case, as the article.
    """
    words = text.split()
    is_letter = [len(word) == 1 and word.isalpha() for word in ["", *words, ""]]
    return " ".join(
        "[['eI]]" if word.lower() == "a" and (is_letter[index] or is_letter[index + 2]) else word
        for index, word in enumerate(words)
    )


def synthesize_utterance(text: str, voices: Sequence[str], seed: int, index: int) -> tuple[np.ndarray, str]:
    """Synthesize one utterance with a voice, rate, pitch, level, noise and silence that depend on (seed, index) alone.

    Returns float32 samples [N] at 16 kHz, and the voice.
    """
    draw = np.random.default_rng((seed, index))
    voice = _draw_voice(voices, draw)
    speech, rate = speak(text, voice, rate=int(draw.integers(*RATE_WPM)), pitch=int(draw.integers(*PITCH)))
    samples = soxr.resample(speech, rate, SAMPLE_RATE)
    samples *= draw.uniform(*PEAK) / float(np.abs(samples).max())
    before, after = (int(draw.uniform(*SILENCE_S) * SAMPLE_RATE) for _ in range(2))
    noise_level = float(np.sqrt((samples**2).mean())) * 10 ** (-draw.uniform(*SNR_DB) / 20)
    samples = np.pad(samples, (before, after))
    samples += noise_level * draw.standard_normal(len(samples))
    return samples.clip(-1, 1).astype(np.float32), voice


def _draw_voice(voices: Sequence[str], draw: np.random.Generator) -> str:
    return voices[int(draw.integers(len(voices)))]


def synthesize(sentences: Sequence[str], voices: Sequence[str], folder: Path, *, seed: int) -> list[SynthesizedClip]:
    """Speak each sentence into `folder`/NNNNNN.flac, 16 kHz mono, and return the metadata rows.

    Files that already exist are kept, so an interrupted run continues. The bytes of a file depend only on its sentence,
    its index, the voices and the seed.

    Raises UserError when there are no sentences, for an unknown voice, or for a sentence without words.
    """
    if not sentences:
        raise UserError("corpus.sources.synthesis.sentences: expected sentences, found none; write some")
    for voice in voices:
        with _Espeak() as espeak:
            espeak.set_voice(voice)
    folder.mkdir(parents=True, exist_ok=True)
    clips: list[SynthesizedClip] = []
    for index, text in enumerate(track(sentences, "synthesize", unit="clip")):
        file = folder / f"{index:06d}.flac"
        if not file.exists():
            samples, _ = synthesize_utterance(text, voices, seed, index)
            with atomic_write(file) as temporary:
                soundfile.write(temporary, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        clips.append(
            {
                "file_name": file.name,
                "text": text,
                "speaker": _draw_voice(voices, np.random.default_rng((seed, index))),
                "seconds": round(soundfile.info(file).duration, 3),
            }
        )
    return clips
