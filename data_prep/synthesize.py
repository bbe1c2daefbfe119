"""Sentences to a multi-voice synthetic corpus, spoken by espeak-ng from the `espeakng-loader` wheel.

espeak-ng is GPL-3.0: an optional tool that makes audio, loaded at run time through ctypes and never part of a student.
"""

import ctypes
import multiprocessing
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from eval.audio import SAMPLE_RATE
from recipes.errors import UserError

VOICES = ("en-us", "en-us+m1", "en-us+m4", "en-us+m7", "en-us+f2", "en-us+f3", "en", "en-gb-x-rp+m5")
"""Default voices, accent and variant of espeak-ng: those of 14 that the alnum teacher reads best (25 to 33 % WER)."""

RATE_WPM, PITCH = (130, 180), (35, 65)
"""Ranges drawn for each utterance: words a minute, and espeak-ng's pitch from 0 to 100."""

SNR_DB, PEAK, SILENCE_S = (20.0, 40.0), (0.2, 0.8), (0.1, 0.3)
"""Ranges drawn for each utterance: white noise below the speech, level of the peak, silence before and after."""

_SYNCHRONOUS, _UTF8, _PHONEMES, _RATE, _PITCH_PARAMETER = 2, 1, 0x100, 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@cache
def _espeak() -> tuple[Any, int]:
    """The library, initialised, and its sample rate in Hz."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "corpus.sources.synthesis: expected the espeakng-loader package, found none; "
            "pip install 'sottovoce[synthesis]'"
        ) from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    assert rate > 0, "espeak-ng did not start"
    return library, rate


def read_sentences(file: Path) -> list[str]:
    """Non-empty lines of a text file; UserError when there are none."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"corpus.sources.synthesis.sentences {file}: expected a text file, found {error}") from error
    if not any(lines):
        raise UserError(f"corpus.sources.synthesis.sentences {file}: expected a sentence a line, found none")
    return [line for line in lines if line]


def set_voice(voice: str) -> None:
    """Choose a voice such as `en-us+f3`; UserError for one that espeak-ng does not have."""
    import espeakng_loader

    library, _ = _espeak()
    _, _, variant = voice.partition("+")
    # An unknown language is refused by espeak-ng, an unknown variant silently ignored.
    known = not variant or (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant).is_file()
    if not known or library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise UserError(
            f"corpus.sources.synthesis.voices: expected an espeak-ng voice such as en-us+f3, found {voice}; correct it"
        )


def speak(text: str, voice: str, *, rate: int, pitch: int) -> tuple[np.ndarray, int]:
    """Float32 samples [N] of spoken text, and their rate in Hz. The text's `a` is the letter's name.

    espeak-ng carries random state from one utterance to the next; for equal samples call it in a fresh process.
    """
    library, sample_rate = _espeak()
    ctypes.CDLL(None).srand(1)
    set_voice(voice)
    library.espeak_SetParameter(_RATE, rate, 0)
    library.espeak_SetParameter(_PITCH_PARAMETER, pitch, 0)
    blocks: list[np.ndarray] = []

    @_CALLBACK
    def receive(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(receive)
    # Inside a sentence espeak-ng reads a lone `a` as the article; in this domain it is always the letter.
    spelled = " ".join("[[eI]]" if word == "a" else word for word in text.split())
    data = spelled.encode() + b"\0"
    library.espeak_Synth(data, len(data), 0, 1, 0, _UTF8 | _PHONEMES, None, None)
    library.espeak_Synchronize()
    if not blocks:
        raise UserError(f"corpus.sources.synthesis: expected words to speak, found {text!r}; remove the line")
    return np.concatenate(blocks).astype(np.float32) / 32768.0, sample_rate


def utterance(text: str, voices: Sequence[str], seed: int, index: int) -> tuple[np.ndarray, str]:
    """Samples [N] at 16 kHz and the voice: all drawn from (seed, index) alone."""
    draw = np.random.default_rng((seed, index))
    voice = voices[int(draw.integers(len(voices)))]
    spoken, rate = speak(text, voice, rate=int(draw.integers(*RATE_WPM)), pitch=int(draw.integers(*PITCH)))
    samples = soxr.resample(spoken, rate, SAMPLE_RATE)
    samples *= draw.uniform(*PEAK) / max(1e-6, float(np.abs(samples).max()))
    before, after = (int(draw.uniform(*SILENCE_S) * SAMPLE_RATE) for _ in range(2))
    level = float(np.sqrt((samples**2).mean())) * 10 ** (-draw.uniform(*SNR_DB) / 20)
    samples = np.pad(samples, (before, after))
    samples += level * draw.standard_normal(len(samples))
    return samples.clip(-1, 1).astype(np.float32), voice


def _write(task: tuple[str, tuple[str, ...], int, int, Path]) -> None:
    text, voices, seed, index, file = task
    samples, _ = utterance(text, voices, seed, index)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    soundfile.write(beside, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    beside.replace(file)


def synthesize(sentences: Sequence[str], voices: Sequence[str], folder: Path, *, seed: int) -> list[dict[str, Any]]:
    """Speak each sentence into folder/NNNNNN.flac, 16 kHz mono; rows of file_name, text, speaker.

    Files that are there are kept, so a killed run resumes; every file's samples depend on seed and index alone.
    """
    for voice in voices:
        set_voice(voice)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:06d}.flac" for index in range(len(sentences))]
    tasks = [(text, tuple(voices), seed, index, files[index]) for index, text in enumerate(sentences)]
    missing = [task for task in tasks if not task[-1].exists()]
    # A process forked for each utterance starts from the same espeak-ng state; it costs about 10 ms.
    with multiprocessing.get_context("fork").Pool(maxtasksperchild=1) as pool:
        done = pool.imap_unordered(_write, missing, chunksize=1)
        for _ in tqdm(done, "synthesize", total=len(missing), unit="clip", disable=not missing):
            pass
    return [
        {"file_name": file.name, "text": text, "speaker": _voice(voices, seed, index)}
        for index, (file, text) in enumerate(zip(files, sentences, strict=True))
    ]


def _voice(voices: Sequence[str], seed: int, index: int) -> str:
    return voices[int(np.random.default_rng((seed, index)).integers(len(voices)))]
