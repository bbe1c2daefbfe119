"""Encoder states of a frozen encoder, computed once and read from disk in every epoch.

With a frozen encoder and unchanged audio the encoder states are the same in each epoch, and computing them is the
largest part of a training step: 0.75 of 1.05 s for the alnum teacher (7 s window, batch 32, two cores). The states are
stored as fp16 and take S x D x 2 bytes per utterance: 134 kB for alnum, 2.3 MB for whisper-small's 30 s window.
`sottovoce check` prints the size for a recipe.

U utterances, B batch, S encoder positions, D width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from data_prep.labels.label_store import Label
from distill.data.examples import Example
from distill.data.training_batches import Batch, Collator
from recipes.core.progress import track


class EncoderCache:
    """Encoder states by utterance id, memory-mapped; several processes may read it.

    Args:
        file: NumPy file of the states [U, S, D].
        ids: Utterance ids in the order of the file's rows.
    """

    def __init__(self, file: Path, ids: Sequence[str]):
        self._states_USD = np.load(file, mmap_mode="r")
        self._row = {name: row for row, name in enumerate(ids)}
        assert len(self._states_USD) == len(ids), f"{file} was made from other labels"

    def __getitem__(self, ids: Sequence[str]) -> torch.Tensor:
        """Return the states [B, S, D] of some utterances in float32."""
        return torch.from_numpy(self._states_USD[[self._row[name] for name in ids]].astype(np.float32))


def build_encoder_cache(
    file: Path, labels: Sequence[Label], collator: Collator, encode: Callable[[Batch], torch.Tensor], *,
    batch_size: int, rank: int, world: int, wait: Callable[[], None],
) -> EncoderCache:  # fmt: skip
    """Compute the encoder states of all labels unless `file` exists, and open it.

    Each of the `world` processes encodes its share of the batches. The file gets its final name when it is complete.

    Args:
        file: NumPy file to write.
        labels: Labels whose audio is encoded.
        collator: Makes batches of examples.
        encode: Returns the encoder states [B, S, D] of a batch.
        batch_size: Utterances that are encoded at a time.
        rank: Number of this process.
        world: Number of processes.
        wait: Barrier at which all processes wait for each other.
    """
    if not file.exists():
        partial = file.with_name(f".{file.name}")
        starts = range(0, len(labels), batch_size)
        for index, start in enumerate(track(starts, "encoder cache", unit="batch", disable=rank != 0)):
            if index != 0 and index % world != rank:
                continue
            # All processes encode the first batch to learn the shape of the states; the first one creates the file.
            batch = collator([Example(label, label.plain, []) for label in labels[start : start + batch_size]])
            states_BSD = encode(batch).half().cpu().numpy()
            if index == 0:
                if rank == 0:
                    shape = (len(labels), *states_BSD.shape[1:])
                    np.lib.format.open_memmap(partial, "w+", np.float16, shape).flush()
                wait()
            if index % world == rank:
                np.lib.format.open_memmap(partial, "r+")[start : start + len(states_BSD)] = states_BSD
        wait()
        if rank == 0:
            partial.rename(file)
        wait()
    return EncoderCache(file, [label.id for label in labels])
