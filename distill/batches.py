"""Labels to training batches, in an order that is a function of seed and step alone.

B batch, N samples, L tokens, S encoder positions, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_prep.label_store import Label
from eval.audio import read_audio

IGNORE = -100
"""Label of positions that are not predicted: prompt and padding."""


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
    encoder_BSD: torch.Tensor | None = None
    """Cached encoder states; the samples are then left empty."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)


class States(Protocol):
    """Where cached encoder states come from."""

    def __getitem__(self, ids: Sequence[str]) -> torch.Tensor:
        """States [B, S, D]."""
        ...


@dataclass(frozen=True)
class Collate:
    """Label rows to a Batch: audio decoded, tokens shifted, prompt and padding masked in the labels alone."""

    window_samples: int
    pad_token: int
    states: States | None = None

    def __call__(self, rows: Sequence[Label]) -> Batch:
        """One batch of these rows."""
        samples_BN = np.zeros((len(rows), 0 if self.states else self.window_samples), np.float32)
        longest = max(len(row.tokens) for row in rows) - 1
        inputs_BL = np.full((len(rows), longest), self.pad_token, np.int64)
        labels_BL = np.full((len(rows), longest), IGNORE, np.int64)
        for index, row in enumerate(rows):
            if self.states is None:
                clip = read_audio(Path(row.audio))[: self.window_samples]
                samples_BN[index, : len(clip)] = clip
            length = len(row.tokens) - 1
            inputs_BL[index, :length] = row.tokens[:-1]
            predicted = slice(row.prompt_length - 1, length)
            labels_BL[index, predicted] = row.tokens[row.prompt_length :]
        ids = [row.id for row in rows]
        samples, inputs, labels = (torch.from_numpy(array) for array in (samples_BN, inputs_BL, labels_BL))
        return Batch(ids, samples, inputs, labels, self.states[ids] if self.states else None)


class _Steps(Dataset[list[Label]]):
    """Step number to the label rows of one process."""

    def __init__(self, labels: Sequence[Label], batch_size: int, seed: int, rank: int, world: int):
        self.labels, self.batch_size, self.seed = labels, batch_size, seed
        self.rank, self.world = rank, world

    def __getitem__(self, step: int) -> list[Label]:
        rows = step_rows(self.labels, step, self.batch_size, self.seed)
        return rows[self.rank :: self.world]


def step_rows(labels: Sequence[Label], step: int, batch_size: int, seed: int) -> list[Label]:
    """Rows of a step: endless epochs, each a new permutation drawn from seed and epoch, cut into batches."""
    first = step * batch_size
    rows: list[Label] = []
    while len(rows) < batch_size:
        epoch, offset = divmod(first + len(rows), len(labels))
        order = _epoch_order(seed, epoch, len(labels))
        rows += [labels[index] for index in order[offset : offset + batch_size - len(rows)]]
    return rows


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def training_batches(
    labels: Sequence[Label], collate: Collate, *, first_step: int, last_step: int, batch_size: int, seed: int,
    rank: int, world: int, workers: int,
) -> Iterator[Batch]:  # fmt: skip
    """Batches of steps first_step .. last_step - 1 for one of `world` processes.

    Together the processes see the same rows whatever their number.
    """
    loader = DataLoader(
        _Steps(labels, batch_size, seed, rank, world),
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def validation_batches(labels: Sequence[Label], collate: Collate, *, batch_size: int) -> Iterator[Batch]:
    """All rows once, in order."""
    for start in range(0, len(labels), batch_size):
        yield collate(labels[start : start + batch_size])
