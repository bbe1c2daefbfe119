"""Audio made harder: speed, rooms, noise, SpecAugment. A function of seed, epoch and utterance alone.

N samples, B batch, F mel bins, T frames.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
import torch

from eval.audio.noise import add_noise, load_noise, noise_files, root_mean_square
from eval.audio.recordings import SAMPLE_RATE
from recipes.schema.train_section import AugmentOptions


@dataclass(frozen=True)
class Augmentation:
    """Draws changes for clips; safe to copy into data-loading processes."""

    settings: AugmentOptions
    seed: int
    noises: tuple[str, ...]
    rooms: tuple[str, ...]

    @classmethod
    def of(cls, settings: AugmentOptions, seed: int) -> "Augmentation":
        """With the recordings that the recipe's folders hold; UserError for a folder without any."""
        found = [noise_files(f"train.augment.{key}", getattr(settings, key)) for key in ("noise", "rooms")]
        return cls(settings, seed, *found)

    def __call__(self, clip: np.ndarray, name: str, epoch: int) -> np.ndarray:
        """Samples [N] at 16 kHz to changed samples; the length changes with the speed alone."""
        settings, draw = self.settings, self._draw(name, epoch)
        if settings.speed and (factor := float(draw.choice(settings.speed))) != 1.0:
            clip = soxr.resample(clip, SAMPLE_RATE * factor, SAMPLE_RATE)
        if self.rooms and draw.random() < settings.room_share:
            clip = _in_room(clip, load_noise(str(draw.choice(self.rooms))))
        if self.noises and draw.random() < settings.noise_share:
            noise = load_noise(str(draw.choice(self.noises)))
            clip = add_noise(clip, noise, draw.uniform(*settings.snr_db), int(draw.integers(len(noise))))
        return clip.astype(np.float32)

    def mask(self, mel_BFT: torch.Tensor, draws: Sequence[tuple[str, int, float]]) -> torch.Tensor:
        """SpecAugment (Park et al. 2019, arXiv 1904.08779): stretches of time and bands of mel bins at the mean.

        `draws`: utterance, epoch and seconds of each clip. Time masks fall within the clip, not the silence after it,
        and cover a fifth of it each at most: half a second would hide a whole digit.
        """
        settings = self.settings
        if not settings.time_masks and not settings.mel_masks:
            return mel_BFT
        mel_BFT = mel_BFT.clone()
        bins = mel_BFT.shape[1]
        for mel_FT, (name, epoch, seconds) in zip(mel_BFT, draws, strict=True):
            frames = min(mel_FT.shape[1], 1 + round(100 * seconds))
            draw, mean = self._draw(f"mask {name}", epoch), mel_FT[:, :frames].mean()
            for _ in range(settings.time_masks):
                width = int(draw.integers(1 + round(min(100 * settings.time_mask_seconds, frames / 5))))
                start = int(draw.integers(max(1, frames - width)))
                mel_FT[:, start : start + width] = mean
            for _ in range(settings.mel_masks):
                width = int(draw.integers(1 + min(bins, settings.mel_mask_bins)))
                start = int(draw.integers(max(1, bins - width)))
                mel_FT[start : start + width] = mean
        return mel_BFT

    def _draw(self, name: str, epoch: int) -> np.random.Generator:
        return np.random.default_rng(list(hashlib.sha256(f"{self.seed} {epoch} {name}".encode()).digest()))


def _in_room(clip: np.ndarray, impulse: np.ndarray) -> np.ndarray:
    """The clip as heard through an impulse response, at its own level, not shifted by the direct path's delay."""
    direct = int(np.abs(impulse).argmax())
    size = len(clip) + len(impulse) - 1
    heard = np.fft.irfft(np.fft.rfft(clip, size) * np.fft.rfft(impulse, size), size)[direct : direct + len(clip)]
    return heard * (root_mean_square(clip) / max(root_mean_square(heard), 1e-8))
