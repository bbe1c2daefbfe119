"""Sentences to a multi-voice synthetic corpus, spoken by espeak-ng from the `espeakng-loader` wheel.

espeak-ng is GPL-3.0: an optional tool that makes audio, loaded at run time through ctypes and never part of a
student.
"""

import _ctypes
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from eval.audio.recordings import SAMPLE_RATE
from recipes.core.atomic_files import atomic_write
from recipes.core.errors import UserError

VOICES = (
    "en-us", "en-us+m1", "en-us+m4", "en-us+m5", "en-us+m6", "en-us+m7", "en-us+rob", "en-us-nyc", "en-us+f1"
)  # fmt: skip
"""Default voices, accent and variant of espeak-ng: those of 25 that the demo's teacher understood best,
WER 21 % to 24 % on 64 sentences each; the others reach 36 %."""

RATE_WPM, PITCH = (145, 176), (30, 56)
"""Drawn for each utterance, end excluded: words a minute, and espeak-ng's pitch from 0 to 100."""

SNR_DB, PEAK, SILENCE_S = (25.0, 40.0), (0.2, 0.8), (0.1, 0.3)
"""Drawn for each utterance: white noise below the speech, level of the peak, silence before and after.
The demo's teacher hears 18 % wrong at 30 dB, 22 % at 20 dB and 25 % at 15 dB."""

WORD_GAP = 10
"""Pause between words in 10 ms: run together, spelled letters are misheard."""

# speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS; espeakCHARS_UTF8 | espeakPHONEMES; three of espeak_PARAMETER.
_SYNCHRONOUS, _UTF8_PHONEMES, _RATE, _PITCH, _WORD_GAP = 2, 1 | 0x100, 1, 3, 7
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def read_sentences(file: Path) -> list[str]:
    """Non-empty lines of a text file; UserError when there are none."""
    key = f"corpus.sources.synthesis.sentences {file}"
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: expected a text file, found {error}; correct the path") from error
    if not any(lines):
        raise UserError(f"{key}: expected a sentence a line, found none; write some")
    return [line for line in lines if line]


def _paths() -> tuple[str, str]:
    """The library and its data folder; UserError when the extra is not installed."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "corpus.sources.synthesis: expected the espeakng-loader package, found none; "
            "pip install 'sottovoce[synthesis]'"
        ) from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


class _Espeak:
    """espeak-ng in the state of a fresh process: loaded on entry, unloaded on exit.

    Its breath noise, flutter and echo run on from one utterance to the next in static variables that
    espeak_Terminate does not clear; unloading does. Costs 8 ms.
    """

    def __enter__(self) -> "_Espeak":
        library, data = _paths()
        self.library = ctypes.CDLL(library)
        ctypes.CDLL(None).srand(1)
        self.sample_rate = int(self.library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), 0))
        assert self.sample_rate > 0, "espeak-ng did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.library.espeak_Terminate()
        _ctypes.dlclose(self.library._handle)

    def choose(self, voice: str) -> None:
        """Set the voice; UserError for one that is not there."""
        variant = voice.partition("+")[2]
        # An unknown language is refused by espeak-ng, an unknown variant silently ignored.
        known = not variant or (Path(_paths()[1]) / "voices" / "!v" / variant).is_file()
        if not known or self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(
                f"corpus.sources.synthesis.voices: expected an espeak-ng voice such as {VOICES[0]}, "
                f"found {voice}; correct it"
            )


def speak(text: str, voice: str, *, rate: int, pitch: int) -> tuple[np.ndarray, int]:
    """Float32 samples [N] of spoken text, and their rate in Hz; equal arguments give equal samples.

    UserError for an unknown voice, or a text with nothing to say.
    """
    blocks: list[np.ndarray] = []

    def receive(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(receive)  # kept alive until the last block
    data = (spell_single_letters(text) if voice.startswith("en") else text).encode() + b"\0"
    with _Espeak() as espeak:
        espeak.choose(voice)
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
    """Text in which an `a` beside another single letter is written as a phoneme.

    espeak-ng reads such an `a` as the article, in upper case too; alone it reads the letter.
    """
    words = text.split()
    lone = [len(word) == 1 and word.isalpha() for word in ["", *words, ""]]
    return " ".join(
        "[['eI]]" if word.lower() == "a" and (lone[place] or lone[place + 2]) else word
        for place, word in enumerate(words)
    )


def synthesize_utterance(text: str, voices: Sequence[str], seed: int, index: int) -> tuple[np.ndarray, str]:
    """Float32 samples [N] at 16 kHz and the voice: all drawn from (seed, index) alone."""
    draw = np.random.default_rng((seed, index))
    voice = _voice(voices, draw)
    spoken, rate = speak(text, voice, rate=int(draw.integers(*RATE_WPM)), pitch=int(draw.integers(*PITCH)))
    samples = soxr.resample(spoken, rate, SAMPLE_RATE)
    samples *= draw.uniform(*PEAK) / float(np.abs(samples).max())
    before, after = (int(draw.uniform(*SILENCE_S) * SAMPLE_RATE) for _ in range(2))
    level = float(np.sqrt((samples**2).mean())) * 10 ** (-draw.uniform(*SNR_DB) / 20)
    samples = np.pad(samples, (before, after))
    samples += level * draw.standard_normal(len(samples))
    return samples.clip(-1, 1).astype(np.float32), voice


def _voice(voices: Sequence[str], draw: np.random.Generator) -> str:
    return voices[int(draw.integers(len(voices)))]


def synthesize(sentences: Sequence[str], voices: Sequence[str], folder: Path, *, seed: int) -> list[dict[str, Any]]:
    """Speak each sentence into folder/NNNNNN.flac, 16 kHz mono; rows of file_name, text, speaker, seconds.

    Files that are there are kept, so a killed run resumes; a file's bytes depend on its sentence and place,
    the voices and the seed alone.
    """
    if not sentences:
        raise UserError("corpus.sources.synthesis.sentences: expected sentences, found none; write some")
    for voice in voices:
        with _Espeak() as espeak:
            espeak.choose(voice)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, text in enumerate(tqdm(sentences, "synthesize", unit="clip")):
        file = folder / f"{index:06d}.flac"
        if not file.exists():
            samples, _ = synthesize_utterance(text, voices, seed, index)
            with atomic_write(file) as beside:
                soundfile.write(beside, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        rows.append(
            {
                "file_name": file.name,
                "text": text,
                "speaker": _voice(voices, np.random.default_rng((seed, index))),
                "seconds": round(soundfile.info(file).duration, 3),
            }
        )
    return rows
