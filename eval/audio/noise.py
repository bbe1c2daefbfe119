"""Noise for tests and augmentation: recorded or synthesized, and mixed with speech at a signal-to-noise ratio."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from eval.audio.recordings import AUDIO_SUFFIXES, SAMPLE_RATE, read_audio
from recipes.core.errors import UserError

COLOURS = {"white": 0.0, "pink": 1.0}
"""Names of the synthesized noises, with the exponent a of their power spectrum 1 / frequency^a."""
_SYNTHESIZED_SECONDS = 30


def noise_files(key: str, folder: Path | None, files: Sequence[str] = ("*",)) -> tuple[str, ...]:
    """Return the sorted paths of the audio files below `folder` that match one of the glob patterns `files`.

    Without a folder the result is empty. `key` is the dotted recipe key that names the folder; the error message
    quotes it. Raises UserError if no file matches.
    """
    if folder is None:
        return ()
    paths = sorted({path for pattern in files for path in folder.rglob(pattern)})
    audio = tuple(str(path) for path in paths if path.suffix.lower() in AUDIO_SUFFIXES)
    if not audio:
        raise UserError(f"{key}: expected audio ({', '.join(files)}) under {folder}, found none; check the folder")
    return audio


@lru_cache(maxsize=64)
def load_noise(name: str) -> np.ndarray:
    """Return samples [N] at 16 kHz: synthesized if `name` is one of `COLOURS`, else read from the file of that name."""
    return _synthesize(COLOURS[name]) if name in COLOURS else read_audio(name)


def _synthesize(exponent: float) -> np.ndarray:
    """Return Gaussian noise of power spectrum 1 / frequency^exponent, -20 dB of full scale, from a fixed seed."""
    size = _SYNTHESIZED_SECONDS * SAMPLE_RATE
    spectrum_K = np.fft.rfft(np.random.default_rng(0).normal(size=size))
    spectrum_K[1:] *= np.arange(1, len(spectrum_K)) ** (-exponent / 2)
    spectrum_K[0] = 0
    noise = np.fft.irfft(spectrum_K, size)
    return (noise * (0.1 / root_mean_square(noise))).astype(np.float32)


def loop_noise(noise: np.ndarray, length: int, start: int) -> np.ndarray:
    """Return `length` samples of `noise` [N] from sample `start` on, wrapping around at its end."""
    return np.resize(np.roll(noise, -start), length)


def add_noise(clip: np.ndarray, noise: np.ndarray, snr_db: float, start: int) -> np.ndarray:
    """Return `clip` [N] with `noise` added, which is looped from sample `start` on.

    `snr_db` is the ratio of the mean power of the clip to that of the added noise, both over the whole clip.
    """
    looped = loop_noise(noise, len(clip), start)
    return clip + looped * (root_mean_square(clip) / max(root_mean_square(looped), 1e-8) * 10 ** (-snr_db / 20))


def root_mean_square(samples: np.ndarray) -> float:
    """Return the root mean square of `samples`; 0 for an empty array."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
