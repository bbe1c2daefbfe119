"""The order of the training labels, which depends on seed and step only.

A run that is resumed at step n, or continued with another number of processes, therefore sees the same labels.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from data_prep.labels.label_store import Label


class BatchOrder:
    """The labels of each training step: an endless sequence of epochs, cut into batches.

    Args:
        labels: The training labels.
        batch_size: Labels per step, over all processes.
        seed: Seed of all draws. The order depends on it, on the other arguments and on the step only.
        weights: How often a label is drawn in an epoch, by source name: 2 is twice, 0.5 in every other epoch. 1 for
            sources that are not named.
        bucket_batches: Number of batches whose labels are sorted by length before they are cut, so that labels of a
            batch have similar lengths; 1 does not sort.
        curriculum: Number of first steps that draw from the shortest utterances, gradually extended to all.
        by_seconds: Sort buckets by length of the audio instead of the number of tokens.
    """

    def __init__(
        self, labels: Sequence[Label], batch_size: int, seed: int, weights: Mapping[str, float] | None = None,
        bucket_batches: int = 1, curriculum: int = 0, by_seconds: bool = False,
    ):  # fmt: skip
        self.labels, self.batch_size, self.seed, self.bucket_batches = labels, batch_size, seed, bucket_batches
        weights, self.curriculum = weights or {}, curriculum
        rows_by_weight: dict[float, list[int]] = {}
        for index, label in enumerate(labels):
            rows_by_weight.setdefault(weights.get(label.source, 1.0), []).append(index)
        # The rows of each weight, and how many of them an epoch draws.
        self._groups = [(np.array(rows), round(weight * len(rows))) for weight, rows in rows_by_weight.items()]
        self.epoch_size = sum(draws for _, draws in self._groups)
        assert self.epoch_size, "source weights: no labels are left to draw"
        self._lengths = np.array([label.seconds if by_seconds else len(label.plain.tokens) for label in labels])
        self._by_seconds = np.argsort([label.seconds for label in labels], kind="stable")
        self._weights = np.array([weights.get(label.source, 1.0) for label in labels])
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def __call__(self, step: int) -> list[tuple[Label, int]]:
        """Return the labels of a step, counted from 0, each with its epoch."""
        if step < self.curriculum:
            return self._draw_curriculum(step)
        first, labels = (step - self.curriculum) * self.batch_size, list[tuple[Label, int]]()
        while len(labels) < self.batch_size:
            epoch, offset = divmod(first + len(labels), self.epoch_size)
            needed = slice(offset, offset + self.batch_size - len(labels))
            labels += [(self.labels[row], epoch) for row in self._epoch(epoch)[needed]]
        return labels

    def _draw_curriculum(self, step: int) -> list[tuple[Label, int]]:
        """Draw from the shortest utterances; their number grows in each step. Every step counts as an epoch."""
        available = max(self.batch_size, len(self.labels) * (step + 1) // self.curriculum)
        rows = self._by_seconds[:available]
        probabilities = self._weights[rows] / self._weights[rows].sum()
        drawn = np.random.default_rng((self.seed, step)).choice(rows, self.batch_size, p=probabilities)
        return [(self.labels[row], step) for row in drawn]

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        """Return the rows of an epoch in their order.

        Each group of rows is drawn from its own endless sequence of permutations, which the next epoch continues. With
        a weight of 0.5, two epochs therefore contain every row of the group.
        """
        drawn = []
        for number, (group, draws) in enumerate(self._groups):
            first, last = epoch * draws, (epoch + 1) * draws
            cycles = range(first // len(group), -(-last // len(group)))
            permutations = [np.random.default_rng((self.seed, number, cycle)).permutation(group) for cycle in cycles]
            if draws:
                drawn.append(np.concatenate(permutations)[first - cycles[0] * len(group) :][:draws])
        draw = np.random.default_rng((self.seed, epoch))
        rows = draw.permutation(np.concatenate(drawn))
        if self.bucket_batches > 1:
            # Sorted buckets need little padding. Which rows share a bucket and the order of the batches stay random.
            bucket = self.bucket_batches * self.batch_size
            parts = [rows[start : start + bucket] for start in range(0, len(rows), bucket)]
            rows = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
            full = len(rows) // self.batch_size
            batches = rows[: full * self.batch_size].reshape(full, self.batch_size)
            rows = np.concatenate([draw.permutation(batches).ravel(), rows[full * self.batch_size :]])
        return rows
