"""Labels to training batches, in an order that is a function of seed and step alone.

B batch, N samples, L tokens, S encoder positions, D width.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_prep.audio.augmentation import Augmentation
from data_prep.labels.label_store import Label
from data_prep.sources.discovery import hash_fraction
from distill.data.examples import IGNORED_LABEL, Example, ExampleSampler
from distill.losses.ctc_loss import SAMPLES_PER_POSITION
from distill.losses.distillation_loss import StoredDistribution
from eval.audio.recordings import SAMPLE_RATE, read_audio


@dataclass(frozen=True)
class Batch:
    """What one process sees of one step."""

    ids: list[str]
    samples_BN: torch.Tensor
    """16 kHz audio, zero-padded or cut to the model's window."""
    inputs_BL: torch.Tensor
    """Decoder input: prompt and label without the last token; padded with the end of text."""
    labels_BL: torch.Tensor
    """Next tokens; IGNORE where nothing is predicted."""
    epochs: list[int] = field(default_factory=list)
    """In which each was drawn."""
    encoder_BSD: torch.Tensor | None = None
    """Cached encoder states; the samples are then left empty."""
    stored: StoredDistribution | None = None
    """The teacher's distribution at the predicted tokens, row by row."""
    seconds: list[float] = field(default_factory=list)
    """Of audio in each clip; the rest of the window is silence."""
    texts: list[list[int]] = field(default_factory=list)
    """Tokens without prompt, timestamps and end of text."""

    @property
    def predicted(self) -> torch.Tensor:
        """Bool [B, L]: which positions predict something."""
        return self.labels_BL != IGNORED_LABEL

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(**{name: _moved(value, device) for name, value in vars(self).items()})


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, StoredDistribution):
        return StoredDistribution(**{key: _moved(part, device) for key, part in vars(value).items()})
    return value


class CachedStates(Protocol):
    """Where cached encoder states come from."""

    def __getitem__(self, ids: Sequence[str]) -> torch.Tensor:
        """States [B, S, D]."""
        ...


@dataclass(frozen=True)
class Collator:
    """Examples to a Batch: audio decoded, prompt and padding masked in the labels alone."""

    window_samples: int
    pad_token: int
    states: CachedStates | None = None
    stored: Callable[[Sequence[Example]], StoredDistribution] | None = None
    augment: Augmentation | None = None
    full_window: float = 1.0
    """Share of batches padded to the whole window; the others to their longest clip."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One batch of these examples."""
        clips = [np.zeros(0, np.float32) if self.states else self._clip(example) for example in examples]
        samples_BN = np.zeros((len(examples), 0 if self.states else self._window(examples, clips)), np.float32)
        longest = max(len(example.inputs) for example in examples)
        inputs_BL = np.full((len(examples), longest), self.pad_token, np.int64)
        labels_BL = np.full((len(examples), longest), IGNORED_LABEL, np.int64)
        for index, example in enumerate(examples):
            samples_BN[index, : len(clips[index])] = clips[index]
            inputs_BL[index, : len(example.inputs)] = example.inputs
            labels_BL[index, : len(example.targets)] = example.targets
        ids = [example.label.id for example in examples]
        samples, inputs, labels = (torch.from_numpy(array) for array in (samples_BN, inputs_BL, labels_BL))
        return Batch(
            ids, samples, inputs, labels, [example.epoch for example in examples],
            self.states[ids] if self.states else None, self.stored(examples) if self.stored else None,
            [len(clip) / SAMPLE_RATE for clip in clips], [example.text for example in examples],
        )  # fmt: skip

    def _clip(self, example: Example) -> np.ndarray:
        clip = read_audio(example.label.audio)
        if self.augment is not None:
            clip = self.augment(clip, example.label.id, example.epoch)
        return clip[: self.window_samples]

    def _window(self, examples: Sequence[Example], clips: Sequence[np.ndarray]) -> int:
        """Samples that the batch is padded to: a whole number of encoder positions."""
        first = examples[0]
        if self.full_window == 1 or hash_fraction(f"window {first.epoch} {first.label.id}") < self.full_window:
            return self.window_samples
        longest = max(len(clip) for clip in clips)
        return min(self.window_samples, -(-longest // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION)


class BatchOrder:
    """Rows of every step: endless epochs, each cut into batches, a function of seed, weights and step alone."""

    def __init__(
        self, labels: Sequence[Label], batch_size: int, seed: int, weights: Mapping[str, float] | None = None,
        bucket_batches: int = 1, curriculum: int = 0, by_seconds: bool = False,
    ):  # fmt: skip
        self.labels, self.batch_size, self.seed, self.bucket_batches = labels, batch_size, seed, bucket_batches
        weights, self.curriculum = weights or {}, curriculum
        rows: dict[float, list[int]] = {}
        for index, label in enumerate(labels):
            rows.setdefault(weights.get(label.source, 1.0), []).append(index)
        # Rows of one weight, and how many of them an epoch draws.
        self._groups = [(np.array(group), round(weight * len(group))) for weight, group in rows.items()]
        self.epoch_size = sum(draws for _, draws in self._groups)
        assert self.epoch_size, "weights leave nothing to draw"
        self._lengths = np.array([label.seconds if by_seconds else len(label.plain.tokens) for label in labels])
        self._by_seconds = np.argsort([label.seconds for label in labels], kind="stable")
        self._chances = np.array([weights.get(label.source, 1.0) for label in labels])
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def __call__(self, step: int) -> list[tuple[Label, int]]:
        """The rows of a step, counted from 0, each with its epoch."""
        if step < self.curriculum:
            return self._draw_early(step)
        first, rows = (step - self.curriculum) * self.batch_size, list[tuple[Label, int]]()
        while len(rows) < self.batch_size:
            epoch, offset = divmod(first + len(rows), self.epoch_size)
            wanted = slice(offset, offset + self.batch_size - len(rows))
            rows += [(self.labels[index], epoch) for index in self._epoch(epoch)[wanted]]
        return rows

    def _draw_early(self, step: int) -> list[tuple[Label, int]]:
        """From the shortest utterances, of which each step knows a few more; each step counts as an epoch."""
        known = max(self.batch_size, len(self.labels) * (step + 1) // self.curriculum)
        rows = self._by_seconds[:known]
        chances = self._chances[rows] / self._chances[rows].sum()
        drawn = np.random.default_rng((self.seed, step)).choice(rows, self.batch_size, p=chances)
        return [(self.labels[index], step) for index in drawn]

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        """Each group goes on in its own endless permutations, so that a weight of 0.5 sees all rows in two epochs."""
        drawn = []
        for number, (group, draws) in enumerate(self._groups):
            first, last = epoch * draws, (epoch + 1) * draws
            cycles = range(first // len(group), -(-last // len(group)))
            endless = [np.random.default_rng((self.seed, number, cycle)).permutation(group) for cycle in cycles]
            if draws:
                drawn.append(np.concatenate(endless)[first - cycles[0] * len(group) :][:draws])
        draw = np.random.default_rng((self.seed, epoch))
        rows = draw.permutation(np.concatenate(drawn))
        if self.bucket_batches > 1:
            # Batches of like length waste little padding; which rows meet and when each batch comes stays random.
            bucket = self.bucket_batches * self.batch_size
            parts = [rows[start : start + bucket] for start in range(0, len(rows), bucket)]
            rows = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
            whole = len(rows) // self.batch_size
            batches = rows[: whole * self.batch_size].reshape(whole, self.batch_size)
            rows = np.concatenate([draw.permutation(batches).ravel(), rows[whole * self.batch_size :]])
        return rows


class _Steps(Dataset[list[Example]]):
    """Step number to the examples of one process."""

    def __init__(self, order: BatchOrder, drawing: ExampleSampler, before: Mapping[str, Label], rank: int, world: int):
        self.order, self.drawing, self.before, self.rank, self.world = order, drawing, before, rank, world

    def __getitem__(self, step: int) -> list[Example]:
        rows = self.order(step)[self.rank :: self.world]
        return [self.drawing(label, self.before.get(label.id), epoch) for label, epoch in rows]


@dataclass(frozen=True)
class _Cut:
    """A step's examples in batches of at most `size`."""

    collate: Collator
    size: int

    def __call__(self, examples: Sequence[Example]) -> list[Batch]:
        return [self.collate(examples[start : start + self.size]) for start in range(0, len(examples), self.size)]


def training_batches(
    order: BatchOrder, drawing: ExampleSampler, before: Mapping[str, Label], collate: Collator, *,
    first_step: int, last_step: int, rank: int, world: int, workers: int, size: int,
) -> Iterator[list[Batch]]:  # fmt: skip
    """Steps first_step .. last_step - 1 of one of `world` processes, each as batches of at most `size` utterances.

    `before`: see `predecessors`. Together the processes see the same rows whatever their number.
    """
    loader = DataLoader(
        _Steps(order, drawing, before, rank, world),
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=workers,
        collate_fn=_Cut(collate, size),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_ending_to_the_trainer,
    )
    return iter(loader)


def _leave_ending_to_the_trainer(_worker: int) -> None:
    # A scheduler tells every process of a job to stop; the trainer saves first, and needs its data for that step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def validation_batches(labels: Sequence[Label], collate: Collator, *, batch_size: int) -> Iterator[Batch]:
    """All labels once, in order, without timestamps or previous text."""
    for start in range(0, len(labels), batch_size):
        yield collate([Example(label, label.plain, []) for label in labels[start : start + batch_size]])
