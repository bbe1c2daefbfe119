"""Tests of both log-mel implementations, and of reading audio of any format."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from data_prep.audio.torch_log_mel import LogMel
from eval.audio.recordings import AudioError, read_audio
from eval.runtimes.log_mel import log_mel


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 60_000),
    bins=st.sampled_from([80, 128]),
    seed=st.integers(0, 99),
    level=st.floats(1e-4, 1),
)
def test_log_mel_equals_transformers(samples: int, bins: int, seed: int, level: float) -> None:
    clip = (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)
    reference = WhisperFeatureExtractor(feature_size=bins, chunk_length=3)
    expected = reference(clip, sampling_rate=16_000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(log_mel(clip, bins, 48_000), expected, atol=2e-4)
    padded = np.zeros((1, 48_000), np.float32)
    padded[0, : min(samples, 48_000)] = clip[:48_000]
    np.testing.assert_allclose(LogMel(bins)(torch.from_numpy(padded)).numpy()[0], expected, atol=2e-4)


def test_silence_is_finite() -> None:
    assert np.isfinite(log_mel(np.zeros(0, np.float32), 80, 48_000)).all()


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"), [(8000, 1, "PCM_16"), (48_000, 2, "PCM_24"), (22_050, 1, "FLOAT")]
)
def test_any_rate_width_and_channel_count_becomes_16_khz_mono(
    tmp_path: Path, rate: int, channels: int, subtype: str
) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone] * channels, axis=1), rate, subtype=subtype)
    samples = read_audio(tmp_path / "tone.wav")
    assert samples.dtype == np.float32
    assert len(samples) == 16_000
    assert np.argmax(np.abs(np.fft.rfft(samples))) == 440


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty file"), (b"this is text", "unreadable"), (None, "no such file")]
)
def test_broken_audio_is_refused_with_its_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "clip.wav"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(AudioError, match=reason):
        read_audio(file)


def test_samples_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="not numbers"):
        read_audio(tmp_path / "nan.wav")
