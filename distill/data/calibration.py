"""Training audio for the methods that look at a layer's inputs, such as pruning and quantization; never test audio.

F mel bins, T mel frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from transformers import WhisperConfig

from eval.audio.recordings import read_audio
from eval.runtimes.log_mel import HOP, log_mel
from recipes.core.errors import UserError

T = TypeVar("T")


def evenly_spaced(values: Sequence[T], count: int) -> Sequence[T]:
    """Return at most `count` of the values, evenly spaced from the first on."""
    return values[:: max(1, len(values) // count)][:count]


@dataclass(frozen=True)
class CalibrationAudio:
    """Log-mels [1, F, T] of some clips; each pass computes them again, so that only one is in memory at a time."""

    audio: Sequence[Sequence[str]]
    """Audio references of each clip (`eval.audio`)."""
    mel_bins: int
    window_samples: int

    @classmethod
    def spread(cls, audio: Sequence[Sequence[str]], config: WhisperConfig, clips: int, key: str) -> Self:
        """Choose `clips` clips, evenly spaced over `audio`, for the model's window.

        Raises UserError, starting with the recipe key `key`, if there is no audio.
        """
        if not audio:
            raise UserError(f"{key} expects training audio to calibrate with, found none in the corpus")
        return cls(evenly_spaced(audio, clips), config.num_mel_bins, 2 * config.max_source_positions * HOP)

    def __len__(self) -> int:
        return len(self.audio)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (log_mel(read_audio(clip), self.mel_bins, self.window_samples)[None] for clip in self.audio)
