"""Encoder states of a frozen encoder, computed once and read from disk in every epoch.

With the encoder frozen and the audio unchanged its states are the same in each epoch, and it is the largest part of
a step: for the alnum teacher (7 s window, batch 32, two cores) 0.75 of 1.05 s. Stored in fp16, S x D x 2 bytes an
utterance: 134 kB for alnum, 2.3 MB for whisper-small's 30 s window; `sottovoce check` states it for the recipe.

U utterances, B batch, S encoder positions, D width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data_prep.labels.label_store import Label
from distill.data.examples import Example
from distill.data.training_batches import Batch, Collator


class EncoderCache:
    """The states by utterance id, memory-mapped; safe to read from several processes."""

    def __init__(self, file: Path, ids: Sequence[str]):
        self._states_USD = np.load(file, mmap_mode="r")
        self._row = {name: row for row, name in enumerate(ids)}
        assert len(self._states_USD) == len(ids), f"{file} is of other labels"

    def __getitem__(self, ids: Sequence[str]) -> torch.Tensor:
        """States [B, S, D] in float32."""
        return torch.from_numpy(self._states_USD[[self._row[name] for name in ids]].astype(np.float32))


def build_encoder_cache(
    file: Path, labels: Sequence[Label], collate: Collator, encode: Callable[[Batch], torch.Tensor], *,
    batch_size: int, rank: int, world: int, wait: Callable[[], None],
) -> EncoderCache:  # fmt: skip
    """Fill the file if it is not there; each of `world` processes encodes its share. Renamed when whole."""
    ids = [label.id for label in labels]
    if not file.exists():
        beside = file.with_name(f".{file.name}")
        starts = range(0, len(labels), batch_size)
        for index, start in enumerate(tqdm(starts, "encoder cache", unit="batch", disable=rank != 0)):
            if index != 0 and index % world != rank:
                continue
            # Every process encodes the first batch, for the shape; the first process makes the file.
            states_BSD = (
                encode(collate([Example(label, label.plain, []) for label in labels[start : start + batch_size]]))
                .half()
                .cpu()
                .numpy()
            )
            if index == 0:
                if rank == 0:
                    shape = (len(labels), *states_BSD.shape[1:])
                    np.lib.format.open_memmap(beside, "w+", np.float16, shape).flush()
                wait()
            if index % world == rank:
                np.lib.format.open_memmap(beside, "r+")[start : start + len(states_BSD)] = states_BSD
        wait()
        if rank == 0:
            beside.rename(file)
        wait()
    return EncoderCache(file, ids)
