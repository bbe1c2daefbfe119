"""Augmentation of training audio: speed, room impulse responses, additive noise and SpecAugment.

Every random draw depends only on the seed, the epoch and the utterance, so the result does not depend on how batches
are formed, on the number of workers or on interruptions.

Axes: N samples, B batch, F mel bins, T frames.
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

_FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class Augmentation:
    """Changes clips and their features at random. Can be copied into data-loading processes.

    Attributes:
        options: The recipe's `augment` settings.
        seed: Seed of all draws.
        noise_paths: Noise recordings to choose from.
        room_paths: Room impulse responses to choose from.
    """

    options: AugmentOptions
    seed: int
    noise_paths: tuple[str, ...]
    room_paths: tuple[str, ...]

    @classmethod
    def from_options(cls, options: AugmentOptions, seed: int) -> "Augmentation":
        """List the recordings in the folders that the options name.

        Raises UserError when a folder holds no audio.
        """
        noise_paths = noise_files("train.augment.noise", options.noise)
        room_paths = noise_files("train.augment.rooms", options.rooms)
        return cls(options, seed, noise_paths, room_paths)

    def __call__(self, clip: np.ndarray, utterance_id: str, epoch: int) -> np.ndarray:
        """Augment samples [N] at 16 kHz. Only a change of speed changes their number."""
        options, draw = self.options, self._random_generator(utterance_id, epoch)
        if options.speed and (factor := float(draw.choice(options.speed))) != 1.0:
            clip = soxr.resample(clip, SAMPLE_RATE * factor, SAMPLE_RATE)
        if self.room_paths and draw.random() < options.room_share:
            clip = _reverberate(clip, load_noise(str(draw.choice(self.room_paths))))
        if self.noise_paths and draw.random() < options.noise_share:
            noise = load_noise(str(draw.choice(self.noise_paths)))
            clip = add_noise(clip, noise, draw.uniform(*options.snr_db), int(draw.integers(len(noise))))
        return clip.astype(np.float32)

    def mask(self, mel_BFT: torch.Tensor, clips: Sequence[tuple[str, int, float]]) -> torch.Tensor:
        """Apply SpecAugment: replace random time spans and bands of mel bins by the clip's mean.

        A time mask stays within the clip and never covers the padding after it. It spans at most a fifth of the clip:
        half a second would hide a whole digit. See Park et al. 2019, arXiv 1904.08779.

        Args:
            mel_BFT: Log-mel features; they are not modified.
            clips: Utterance id, epoch and length in seconds of each clip.
        """
        options = self.options
        if not options.time_masks and not options.mel_masks:
            return mel_BFT
        mel_BFT = mel_BFT.clone()
        bins = mel_BFT.shape[1]
        for mel_FT, (utterance_id, epoch, seconds) in zip(mel_BFT, clips, strict=True):
            frames = min(mel_FT.shape[1], 1 + round(_FRAMES_PER_SECOND * seconds))
            longest = min(_FRAMES_PER_SECOND * options.time_mask_seconds, frames / 5)
            draw, mean = self._random_generator(f"mask {utterance_id}", epoch), mel_FT[:, :frames].mean()
            for _ in range(options.time_masks):
                width = int(draw.integers(1 + round(longest)))
                start = int(draw.integers(max(1, frames - width)))
                mel_FT[:, start : start + width] = mean
            for _ in range(options.mel_masks):
                width = int(draw.integers(1 + min(bins, options.mel_mask_bins)))
                start = int(draw.integers(max(1, bins - width)))
                mel_FT[start : start + width] = mean
        return mel_BFT

    def _random_generator(self, name: str, epoch: int) -> np.random.Generator:
        return np.random.default_rng(list(hashlib.sha256(f"{self.seed} {epoch} {name}".encode()).digest()))


def _reverberate(clip: np.ndarray, impulse_response: np.ndarray) -> np.ndarray:
    """Convolve the clip with a room's impulse response; keep its level, its length and its position in time.

    The delay of the direct path, the largest value of the response, is removed.
    """
    direct = int(np.abs(impulse_response).argmax())
    size = len(clip) + len(impulse_response) - 1
    wet = np.fft.irfft(np.fft.rfft(clip, size) * np.fft.rfft(impulse_response, size), size)
    wet = wet[direct : direct + len(clip)]
    return wet * (root_mean_square(clip) / max(root_mean_square(wet), 1e-8))
