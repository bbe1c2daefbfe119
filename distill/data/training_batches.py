"""Batches: audio, tokens and teacher outputs of several examples as tensors.

B batch, N samples, L tokens, S encoder positions, D width.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_prep.audio.augmentation import Augmentation
from data_prep.labels.label_store import Label
from data_prep.sources.discovery import hash_fraction
from distill.data.batch_order import BatchOrder
from distill.data.examples import IGNORED_LABEL, Example, ExampleSampler
from distill.losses.ctc_loss import SAMPLES_PER_POSITION
from distill.losses.distillation_loss import StoredDistribution
from eval.audio.recordings import SAMPLE_RATE, read_audio


@dataclass(frozen=True)
class Batch:
    """The utterances that one process computes in one forward pass."""

    ids: list[str]
    """Utterance ids."""
    samples_BN: torch.Tensor
    """16 kHz audio, zero-padded or cut to the model's window; empty [B, 0] with cached encoder states."""
    inputs_BL: torch.Tensor
    """Decoder input: prompt and label without the last token, padded with the end of text."""
    labels_BL: torch.Tensor
    """Next token at each position; IGNORED_LABEL where nothing is predicted."""
    epochs: list[int] = field(default_factory=list)
    """Epoch in which each example was drawn."""
    encoder_BSD: torch.Tensor | None = None
    """Cached encoder states."""
    stored: StoredDistribution | None = None
    """The teacher's stored distribution at the predicted tokens of all rows, one row after the other."""
    seconds: list[float] = field(default_factory=list)
    """Length of each clip; the remainder of the window is silence."""
    texts: list[list[int]] = field(default_factory=list)
    """Text tokens of each label, without prompt, timestamps and end of text."""

    @property
    def predicted(self) -> torch.Tensor:
        """Bool [B, L]: True at the positions where a token is predicted."""
        return self.labels_BL != IGNORED_LABEL

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on `device`."""
        return Batch(**{name: _to_device(value, device) for name, value in vars(self).items()})


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, StoredDistribution):
        return StoredDistribution(**{name: _to_device(tensor, device) for name, tensor in vars(value).items()})
    return value


class CachedStates(Protocol):
    """A source of cached encoder states, such as `distill.data.encoder_cache.EncoderCache`."""

    def __getitem__(self, ids: Sequence[str]) -> torch.Tensor:
        """Return the encoder states [B, S, D] of some utterances."""
        ...


@dataclass(frozen=True)
class Collator:
    """Makes a `Batch` from examples: reads the audio, pads audio and tokens, masks prompt and padding in the labels."""

    window_samples: int
    """Length of the model's window."""
    pad_token: int
    """Token that pads the decoder inputs."""
    states: CachedStates | None = None
    """Cached encoder states to use in place of the audio."""
    stored: Callable[[Sequence[Example]], StoredDistribution] | None = None
    """Returns the teacher's stored distribution for a batch of examples."""
    augmentation: Augmentation | None = None
    """Changes to the audio."""
    full_window: float = 1.0
    """Share of batches that are padded to the window; the others are padded to their longest clip."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Return the batch of these examples."""
        clips = [np.zeros(0, np.float32) if self.states else self._read_clip(example) for example in examples]
        length = 0 if self.states else self._padded_length(examples, clips)
        samples_BN = np.zeros((len(examples), length), np.float32)
        longest = max(len(example.inputs) for example in examples)
        inputs_BL = np.full((len(examples), longest), self.pad_token, np.int64)
        labels_BL = np.full((len(examples), longest), IGNORED_LABEL, np.int64)
        for index, example in enumerate(examples):
            samples_BN[index, : len(clips[index])] = clips[index]
            inputs_BL[index, : len(example.inputs)] = example.inputs
            labels_BL[index, : len(example.targets)] = example.targets
        ids = [example.label.id for example in examples]
        return Batch(
            ids=ids,
            samples_BN=torch.from_numpy(samples_BN),
            inputs_BL=torch.from_numpy(inputs_BL),
            labels_BL=torch.from_numpy(labels_BL),
            epochs=[example.epoch for example in examples],
            encoder_BSD=self.states[ids] if self.states else None,
            stored=self.stored(examples) if self.stored else None,
            seconds=[len(clip) / SAMPLE_RATE for clip in clips],
            texts=[example.text for example in examples],
        )

    def _read_clip(self, example: Example) -> np.ndarray:
        clip = read_audio(example.label.audio)
        if self.augmentation is not None:
            clip = self.augmentation(clip, example.label.id, example.epoch)
        return clip[: self.window_samples]

    def _padded_length(self, examples: Sequence[Example], clips: Sequence[np.ndarray]) -> int:
        """Return the number of samples that the batch is padded to, a multiple of SAMPLES_PER_POSITION."""
        first = examples[0]
        if self.full_window == 1 or hash_fraction(f"window {first.epoch} {first.label.id}") < self.full_window:
            return self.window_samples
        longest = max(len(clip) for clip in clips)
        return min(self.window_samples, -(-longest // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION)


class _StepExamples(Dataset[list[Example]]):
    """The examples of one process in each training step."""

    def __init__(
        self, order: BatchOrder, sampler: ExampleSampler, previous: Mapping[str, Label], rank: int, world: int
    ):
        self.order, self.sampler, self.previous, self.rank, self.world = order, sampler, previous, rank, world

    def __getitem__(self, step: int) -> list[Example]:
        labels = self.order(step)[self.rank :: self.world]
        return [self.sampler(label, self.previous.get(label.id), epoch) for label, epoch in labels]


@dataclass(frozen=True)
class _MicroBatches:
    """Makes batches of at most `size` examples from those of a step."""

    collator: Collator
    size: int

    def __call__(self, examples: Sequence[Example]) -> list[Batch]:
        return [self.collator(examples[start : start + self.size]) for start in range(0, len(examples), self.size)]


def training_batches(
    order: BatchOrder, sampler: ExampleSampler, previous: Mapping[str, Label], collator: Collator, *,
    first_step: int, last_step: int, rank: int, world: int, workers: int, size: int,
) -> Iterator[list[Batch]]:  # fmt: skip
    """Yield the batches of one process for the steps first_step .. last_step - 1.

    The processes share the labels of a step: together they see the same ones, however many processes there are.

    Args:
        order: The labels of each step.
        sampler: Draws the examples.
        previous: Label before each utterance, by utterance id (`distill.data.examples.previous_labels`).
        collator: Makes batches from examples.
        first_step: First step, counted from 0.
        last_step: Step to end before.
        rank: Number of this process.
        world: Number of processes.
        workers: Processes that read audio ahead; 0 reads in this process.
        size: Largest number of utterances in a batch; a step yields several batches if it has more.
    """
    loader = DataLoader(
        _StepExamples(order, sampler, previous, rank, world),
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=workers,
        collate_fn=_MicroBatches(collator, size),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_sigterm,
    )
    return iter(loader)


def _ignore_sigterm(_worker: int) -> None:
    # A job scheduler sends SIGTERM to every process of a job. The trainer finishes its step and saves a checkpoint
    # before it ends, and needs the workers' data for that step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def validation_batches(labels: Sequence[Label], collator: Collator, *, batch_size: int) -> Iterator[Batch]:
    """Yield all labels once, in their order, without timestamps and previous text."""
    for start in range(0, len(labels), batch_size):
        yield collator([Example(label, label.plain, []) for label in labels[start : start + batch_size]])
