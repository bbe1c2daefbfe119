"""Noise, recorded or made here, and how it is laid under speech."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from eval.audio.recordings import AUDIO_SUFFIXES, SAMPLE_RATE, read_audio
from recipes.core.errors import UserError

COLOURS = {"white": 0.0, "pink": 1.0}
"""Noise that is made here: by how many powers of the frequency its power falls."""
_MADE_SECONDS = 30


def noise_files(key: str, folder: Path | None, files: Sequence[str] = ("*",)) -> tuple[str, ...]:
    """The audio below a folder whose names match; UserError, naming the recipe's key, where there is none."""
    if folder is None:
        return ()
    paths = sorted({path for pattern in files for path in folder.rglob(pattern)})
    found = tuple(str(path) for path in paths if path.suffix.lower() in AUDIO_SUFFIXES)
    if not found:
        raise UserError(f"{key}: expected audio ({', '.join(files)}) under {folder}, found none; check the folder")
    return found


@lru_cache(maxsize=64)
def load_noise(name: str) -> np.ndarray:
    """Samples [N] at 16 kHz of a recording, or of one of `COLOURS`."""
    return _made(COLOURS[name]) if name in COLOURS else read_audio(name)


def _made(power: float) -> np.ndarray:
    """Gaussian noise, the same each time, at -20 dB of full scale."""
    size = _MADE_SECONDS * SAMPLE_RATE
    spectrum_K = np.fft.rfft(np.random.default_rng(0).normal(size=size))
    spectrum_K[1:] *= np.arange(1, len(spectrum_K)) ** (-power / 2)
    spectrum_K[0] = 0
    noise = np.fft.irfft(spectrum_K, size)
    return (noise * (0.1 / root_mean_square(noise))).astype(np.float32)


def loop_noise(noise: np.ndarray, samples: int, start: int) -> np.ndarray:
    """So many samples of a recording from a place in it on, in a circle."""
    return np.resize(np.roll(noise, -start), samples)


def add_noise(clip: np.ndarray, noise: np.ndarray, snr_db: float, start: int) -> np.ndarray:
    """A clip [N] with noise from a place in its recording on, at a ratio of power to the whole clip's, in dB."""
    part = loop_noise(noise, len(clip), start)
    return clip + part * (root_mean_square(clip) / max(root_mean_square(part), 1e-8) * 10 ** (-snr_db / 20))


def root_mean_square(samples: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
