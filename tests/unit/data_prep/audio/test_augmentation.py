"""Tests of augmentation: all changes stay within their limits and are the same when drawn again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.audio.augmentation import Augmentation
from recipes.core.errors import UserError
from recipes.schema.train_section import AugmentOptions


def augmentation(**settings: Any) -> Augmentation:
    return Augmentation.from_options(AugmentOptions(**settings), seed=0)


@given(seconds=st.floats(0.1, 6.9), name=st.text(max_size=5), epoch=st.integers(0, 3))
def test_time_masks_cover_part_of_the_clip_and_no_padding(seconds: float, name: str, epoch: int) -> None:
    masks = augmentation(time_masks=2, time_mask_seconds=0.4)
    mel_BFT = torch.randn(1, 80, 700)
    masked_BFT = masks.mask(mel_BFT, [(name, epoch, seconds)])
    hidden_T = (masked_BFT != mel_BFT).any(dim=1)[0]
    frames = 1 + round(100 * seconds)
    assert not hidden_T[frames:].any()
    assert hidden_T.sum() <= 2 * min(40, round(frames / 5))
    assert masked_BFT.equal(masks.mask(mel_BFT, [(name, epoch, seconds)]))


def test_mel_masks_cover_whole_bands() -> None:
    mel_BFT = torch.randn(8, 80, 100)
    masked_BFT = augmentation(mel_masks=1, mel_mask_bins=10).mask(mel_BFT, [(str(row), 0, 1.0) for row in range(8)])
    changed_BFT = masked_BFT != mel_BFT
    assert changed_BFT.any(dim=2).equal(changed_BFT.all(dim=2)), "whole rows or none"
    assert 0 < changed_BFT.all(dim=2).sum(dim=1).max() <= 10


def test_speed_changes_the_length_and_noise_has_the_requested_ratio(tmp_path: Path) -> None:
    clip = np.sin(np.arange(16_000) / 5).astype(np.float32)
    assert len(augmentation(speed=[1.25])(clip, "a", 0)) == 12_800
    soundfile.write(tmp_path / "n.wav", np.random.default_rng(0).normal(0, 0.3, 8_000), 16_000)
    noisy = augmentation(noise=tmp_path, noise_share=1.0, snr_db=(10.0, 10.0))(clip, "a", 0)
    ratio = np.mean(clip**2) / np.mean((noisy - clip) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(10.0, abs=0.5)


def test_reverberation_does_not_shift_the_clip(tmp_path: Path) -> None:
    impulse = np.zeros(4_000)
    impulse[1_000], impulse[1_800] = 1.0, 0.3
    soundfile.write(tmp_path / "r.wav", impulse, 16_000)
    clip = np.zeros(16_000, np.float32)
    clip[5_000] = 0.5
    reverberated = augmentation(rooms=tmp_path, room_share=1.0)(clip, "a", 0)
    assert np.abs(reverberated).argmax() == 5_000
    assert reverberated[5_800] == pytest.approx(0.3 * reverberated[5_000], rel=1e-2)


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.augment\.noise"):
        augmentation(noise=tmp_path)
