"""Training audio on which layers are looked at; never test.

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


@dataclass(frozen=True)
class CalibrationAudio:
    """Log-mels [1, F, T] of some clips, computed anew in every pass: only one is in memory at a time."""

    audio: Sequence[Sequence[str]]
    """References (`eval.audio`)."""
    mel_bins: int
    window_samples: int

    @classmethod
    def spread(cls, audio: Sequence[Sequence[str]], config: WhisperConfig, clips: int, key: str) -> Self:
        """So many clips spread evenly over the audio, in the model's window; UserError with `key` for no audio."""
        if not audio:
            raise UserError(f"{key} expects training audio to calibrate with, found none in the corpus")
        return cls(cls.of(audio, clips), config.num_mel_bins, 2 * config.max_source_positions * HOP)

    @staticmethod
    def of(values: Sequence[T], clips: int) -> Sequence[T]:
        """Of one value an utterance, those of the chosen clips."""
        return values[:: max(1, len(values) // clips)][:clips]

    def __len__(self) -> int:
        return len(self.audio)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (log_mel(read_audio(clip), self.mel_bins, self.window_samples)[None] for clip in self.audio)
