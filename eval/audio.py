"""Audio files to the 16 kHz mono float32 samples that every model here takes."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
"""Hz, of Whisper's feature extractor."""

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64", ".rf64"})
"""File names that count as audio in a bare folder; libsndfile reads them all."""


class AudioError(Exception):
    """An audio file that cannot be used; the message is the reason alone, without the path."""


def read_audio(path: Path) -> np.ndarray:
    """Read a file of any rate, width and channel count as float32 samples [N] at 16 kHz, mono.

    Raises AudioError with the reason: unreadable, empty, or with values that are not numbers.
    """
    try:
        with soundfile.SoundFile(path) as file:
            samples_NC = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except PermissionError as error:
        raise AudioError("no permission to read") from error
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        reason = "empty file" if path.is_file() and path.stat().st_size == 0 else f"unreadable: {_reason(error)}"
        raise AudioError(reason) from error
    if not len(samples_NC):
        raise AudioError("no samples")
    if not np.isfinite(samples_NC).all():
        raise AudioError("samples that are not numbers (NaN or infinite)")
    samples = samples_NC.mean(axis=1, dtype=np.float32)
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__
