"""What the teacher says of each predicted token: from its labels, or from the model itself.

K stored logits, B batch, N valid tokens, S encoder positions, D width, V vocabulary.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import WhisperForConditionalGeneration

from data_prep.labels.label_store import TokenDistribution, shard_files
from distill.data.examples import Example
from distill.data.vocabulary_map import VocabularyMap
from distill.losses.distillation_loss import StoredDistribution
from eval.runtimes.torch_runtime import load_teacher
from recipes.core.errors import UserError


class StoredTeacher:
    """Distributions of a label set by utterance, memory-mapped: a set may be larger than memory.

    `datasets` turns the shards into an Arrow file below `cache` once; processes and their workers share its pages.
    """

    def __init__(self, labels: Path, cache: Path, temperature: float, words: VocabularyMap | None = None):
        files = [str(file) for file in shard_files(labels)]
        written = (pq.read_schema(files[0]).metadata or {}).get(b"sottovoce.temperature", b"")
        if float(written or "nan") != temperature:
            raise UserError(
                f"stored teacher: the labels in {labels} have their tail summed at {written.decode() or 'none'}, "
                f"found temperature {temperature:g}; make them equal, or take the live teacher"
            )
        import datasets

        datasets.disable_progress_bars()
        table = datasets.Dataset.from_parquet(files, cache_dir=str(cache), columns=["id", "plain", "timed"])
        self._rows = {name: row for row, name in enumerate(table["id"])}
        self._words = words
        self._table = table.with_format("numpy", columns=["plain", "timed"])

    def __call__(self, examples: Sequence[Example]) -> StoredDistribution:
        """Of all predicted tokens of a batch, one example after the other."""
        kept = [self._distribution(example) for example in examples]
        whole = TokenDistribution(
            *(np.concatenate([getattr(one, part) for one in kept]) for part in ("ids_NK", "logits_NK", "rest_N"))
        )
        if self._words is not None:
            whole = self._words.distribution(whole)
        ids_NK = torch.from_numpy(whole.ids_NK.astype(np.int64))
        return StoredDistribution(ids_NK, torch.from_numpy(whole.logits_NK), torch.from_numpy(whole.rest_N))

    def _distribution(self, example: Example) -> TokenDistribution:
        form = "timed" if example.written is example.label.timed else "plain"
        found: dict[str, Any] = self._table[self._rows[example.label.id]][form]
        if found["rest"] is None or not len(found["rest"]):
            raise UserError(
                f"stored teacher: expected logits for {example.label.id}, found none; label with labels.top_k"
            )
        rest = np.asarray(found["rest"], np.float32)
        shape = (len(rest), -1)
        ids, logits = (np.asarray(found[key]).reshape(shape) for key in ("top_ids", "top_logits"))
        if len(rest) != len(example.written.tokens) - example.written.prompt_length:
            raise UserError(
                f"stored teacher: the label {example.label.id} is spelled with other tokens than the teacher's, found "
                "no logits of these; take the live teacher, or keep more in compress.vocabulary"
            )
        return TokenDistribution(ids.astype(np.int32), logits.astype(np.float32), rest)

    @staticmethod
    def forget(cache: Path) -> None:
        """Remove the Arrow file."""
        shutil.rmtree(cache, ignore_errors=True)


class LiveTeacher:
    """The teacher's own decoder, and its own encoder where the student's is not the same."""

    def __init__(
        self, folder: Path, student: WhisperForConditionalGeneration, device: torch.device, *, frozen: bool,
        quantize: int | None, words: VocabularyMap | None = None,
    ):  # fmt: skip
        self.model = load_teacher(folder, device, quantize=quantize)
        self.frames = 2 * self.model.config.max_source_positions
        """Of its window's log-mel."""
        self._theirs_K = words.theirs_K.to(device) if words is not None else None
        # A student whose encoder was cut, or is trained, must not lend it to the teacher.
        self.shares_encoder = frozen and _equal_encoders(self.model, student, quantized=quantize is not None, at=folder)
        if self.shares_encoder:
            self.model.model.encoder = torch.nn.Identity()

    @torch.no_grad()
    def hear(self, mel_BFT: torch.Tensor) -> torch.Tensor:
        """Its own encoder's states [B, S, D] of a log-mel of its window."""
        states_BSD: torch.Tensor = self.model.model.encoder(mel_BFT.to(self.model.dtype)).last_hidden_state
        return states_BSD

    @torch.no_grad()
    def __call__(
        self, encoder_BSD: torch.Tensor, inputs_BL: torch.Tensor, valid_BL: torch.Tensor
    ) -> Callable[[slice], torch.Tensor]:
        """Logits [rows, V] of a slice of the valid tokens, made when asked for; prompts are read like the student's.

        Inputs and logits are in the student's tokens; logits of others are left out.
        """
        if self._theirs_K is not None:
            inputs_BL = self._theirs_K[inputs_BL]
        decoded = self.model.model.decoder(
            input_ids=inputs_BL, encoder_hidden_states=encoder_BSD.to(self.model.dtype), use_cache=False
        )
        hidden_ND = decoded.last_hidden_state[valid_BL]

        def logits(rows: slice) -> torch.Tensor:
            logits_NV: torch.Tensor = self.model.proj_out(hidden_ND[rows])
            return logits_NV if self._theirs_K is None else logits_NV[:, self._theirs_K]

        return logits


def _equal_encoders(
    teacher: WhisperForConditionalGeneration, student: WhisperForConditionalGeneration, *, quantized: bool, at: Path
) -> bool:
    from eval.runtimes.torch_runtime import load_model

    whole = load_model(at) if quantized else teacher
    theirs, mine = whole.model.encoder.state_dict(), student.model.encoder.state_dict()
    return theirs.keys() == mine.keys() and all(
        torch.equal(theirs[name].to(mine[name].device, mine[name].dtype), mine[name]) for name in mine
    )
