"""Log-mel features in numpy, equal to `transformers.WhisperFeatureExtractor` (openai/whisper, audio.py).

B batch, F mel bins, T frames of 10 ms, N samples, K frequency bins.
"""

from functools import cache

import numpy as np

N_FFT, HOP, RATE = 400, 160, 16_000
POSITIONS_PER_SECOND = RATE // (2 * HOP)
"""Of the encoder, whose second convolution takes every other frame."""
FLOOR = 1e-10
"""Power below which a mel value is cut, before the logarithm."""


@cache
def mel_filters(bins: int) -> np.ndarray:
    """Slaney-scaled, area-normalised triangular filters [K, F] from 0 to 8 kHz, float32."""
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(RATE / 2), bins + 2))
    hz_K1 = np.linspace(0, RATE / 2, N_FFT // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (hz_K1 - low) / (centre - low)
    falling = (high - hz_K1) / (high - centre)
    filters_KF = np.maximum(0, np.minimum(rising, falling)) * (2.0 / (high - low))
    return filters_KF.astype(np.float32)


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear below 1 kHz, 27 steps to each factor of 6.4 above."""
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * float(np.log(hz / 1000) / np.log(6.4))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@cache
def _window() -> np.ndarray:
    return np.hanning(N_FFT + 1)[:-1].astype(np.float32)


def log_mel(samples: np.ndarray, bins: int, window_samples: int) -> np.ndarray:
    """Log-mel [F, T] float32 of float samples [N] at 16 kHz, cut or zero-padded to the window.

    Frames that hold padding alone are constant, so only the sounding ones are transformed: for a 3 s clip in a
    30 s window this is a tenth of the work, with the same result.
    """
    frames = window_samples // HOP
    padded = np.zeros(window_samples, np.float32)
    padded[: len(samples)] = samples[:window_samples]
    centred = np.pad(padded, N_FFT // 2, mode="reflect")
    sounding = min(frames, (min(len(samples), window_samples) + N_FFT // 2) // HOP + 1)
    blocks = np.lib.stride_tricks.sliding_window_view(centred, N_FFT)[: sounding * HOP : HOP]
    spectrum_TK = np.fft.rfft(blocks * _window(), axis=1)
    power_TK = spectrum_TK.real**2 + spectrum_TK.imag**2
    log_TF = np.full((frames, bins), np.log10(FLOOR), np.float32)
    log_TF[:sounding] = np.log10(np.maximum(power_TK @ mel_filters(bins), FLOOR))
    log_TF = np.maximum(log_TF, log_TF.max() - 8.0)
    return ((log_TF.T + 4.0) / 4.0).astype(np.float32)
