"""The teacher's distribution at each predicted token, read from the labels or computed by the teacher itself.

K stored logits, B batch, T mel frames, N predicted tokens, S encoder positions, D width, V vocabulary.
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
from eval.runtimes.torch_runtime import load_model, load_teacher
from recipes.core.errors import UserError


class StoredTeacher:
    """The distributions of a label set, memory-mapped, so that the set may be larger than memory.

    `datasets` converts the Parquet shards to one Arrow file, whose memory pages all processes and their workers share.
    Raises UserError if the labels were not stored for this temperature.

    Args:
        labels: Folder of the label shards.
        cache: Folder for the Arrow file; written once, removed by `remove_cache`.
        temperature: Softmax temperature of the KL term. The labels must have their tail summed at the same one.
        vocabulary: Maps stored token ids to those of a student with a trimmed vocabulary.
    """

    def __init__(self, labels: Path, cache: Path, temperature: float, vocabulary: VocabularyMap | None = None):
        files = [str(file) for file in shard_files(labels)]
        stored = (pq.read_schema(files[0]).metadata or {}).get(b"sottovoce.temperature", b"").decode()
        if float(stored or "nan") != temperature:
            raise UserError(
                f"stored teacher: expected labels whose tail is summed at temperature {temperature:g}, found "
                f"{stored or 'none'} in {labels}; make the temperatures equal, or set teacher: live"
            )
        import datasets

        datasets.disable_progress_bars()
        table = datasets.Dataset.from_parquet(files, cache_dir=str(cache), columns=["id", "plain", "timed"])
        self._rows = {name: row for row, name in enumerate(table["id"])}
        self._vocabulary = vocabulary
        self._table = table.with_format("numpy", columns=["plain", "timed"])

    def __call__(self, examples: Sequence[Example]) -> StoredDistribution:
        """Return the distribution at all predicted tokens of a batch, one example after the other."""
        rows = [self._read(example) for example in examples]
        distribution = TokenDistribution(
            *(np.concatenate([getattr(row, name) for row in rows]) for name in ("ids_NK", "logits_NK", "tail_N"))
        )
        if self._vocabulary is not None:
            distribution = self._vocabulary.map_distribution(distribution)
        return StoredDistribution(
            torch.from_numpy(distribution.ids_NK.astype(np.int64)),
            torch.from_numpy(distribution.logits_NK),
            torch.from_numpy(distribution.tail_N),
        )

    def _read(self, example: Example) -> TokenDistribution:
        column = "timed" if example.written is example.label.timed else "plain"
        row: dict[str, Any] = self._table[self._rows[example.label.id]][column]
        if row["rest"] is None or not len(row["rest"]):
            raise UserError(
                f"stored teacher: expected logits for {example.label.id}, found none; label with labels.top_k"
            )
        tail_N = np.asarray(row["rest"], np.float32)
        ids_NK, logits_NK = (np.asarray(row[key]).reshape(len(tail_N), -1) for key in ("top_ids", "top_logits"))
        if len(tail_N) != len(example.written.tokens) - example.written.prompt_length:
            raise UserError(
                f"stored teacher: the student's vocabulary spells the label {example.label.id} with other tokens than "
                "the teacher's, for which there are no stored logits; set teacher: live, or keep more tokens in "
                "compress.vocabulary"
            )
        return TokenDistribution(ids_NK.astype(np.int32), logits_NK.astype(np.float32), tail_N)

    @staticmethod
    def remove_cache(cache: Path) -> None:
        """Remove the Arrow file."""
        shutil.rmtree(cache, ignore_errors=True)


class LiveTeacher:
    """The teacher itself: its decoder, and its encoder unless the student's gives the same states.

    This is not a `torch.nn.Module`, so that it never becomes part of a module that is trained, wrapped or saved.

    Args:
        folder: The teacher's model folder.
        student: The student, whose encoder the teacher shares if both are equal.
        device: Device to compute on.
        frozen: Whether the student's encoder is frozen; the encoder of a trained student is never shared.
        quantize: Bits of the teacher's linear layers, 8 or 4; None keeps them in full precision.
        vocabulary: Maps token ids for a student with a trimmed vocabulary.
    """

    def __init__(
        self, folder: Path, student: WhisperForConditionalGeneration, device: torch.device, *, frozen: bool,
        quantize: int | None, vocabulary: VocabularyMap | None = None,
    ):  # fmt: skip
        self.model = load_teacher(folder, device, quantize=quantize)
        self.frames = 2 * self.model.config.max_source_positions
        """Log-mel frames of the teacher's window."""
        self._teacher_ids_K = vocabulary.teacher_ids_K.to(device) if vocabulary is not None else None
        # The teacher must not hear through an encoder that was cut or is being trained.
        unquantized = load_model(folder) if frozen and quantize is not None else self.model
        self.shares_encoder = frozen and _equal_encoders(unquantized, student)
        """Whether the student's encoder states are also the teacher's."""
        if self.shares_encoder:
            self.model.model.encoder = torch.nn.Identity()

    @torch.no_grad()
    def encode(self, mel_BFT: torch.Tensor) -> torch.Tensor:
        """Return the states [B, S, D] of the teacher's own encoder for log-mels of its window."""
        states_BSD: torch.Tensor = self.model.model.encoder(mel_BFT.to(self.model.dtype)).last_hidden_state
        return states_BSD

    @torch.no_grad()
    def __call__(
        self, encoder_BSD: torch.Tensor, inputs_BL: torch.Tensor, valid_BL: torch.Tensor
    ) -> Callable[[slice], torch.Tensor]:
        """Run the decoder, and return a function that computes the logits of a slice of the predicted tokens.

        Logits are computed on request, since those of all tokens would be large. The decoder reads the same prompts as
        the student's.

        Args:
            encoder_BSD: The teacher's encoder states.
            inputs_BL: Decoder inputs in the student's token ids.
            valid_BL: True at the predicted tokens.

        Returns:
            A function from a slice of the N predicted tokens to their logits, for the student's vocabulary.
        """
        if self._teacher_ids_K is not None:
            inputs_BL = self._teacher_ids_K[inputs_BL]
        decoded = self.model.model.decoder(
            input_ids=inputs_BL, encoder_hidden_states=encoder_BSD.to(self.model.dtype), use_cache=False
        )
        hidden_ND = decoded.last_hidden_state[valid_BL]

        def logits(rows: slice) -> torch.Tensor:
            logits_NV: torch.Tensor = self.model.proj_out(hidden_ND[rows])
            return logits_NV if self._teacher_ids_K is None else logits_NV[:, self._teacher_ids_K]

        return logits


def _equal_encoders(teacher: WhisperForConditionalGeneration, student: WhisperForConditionalGeneration) -> bool:
    """Whether both encoders have the same weights, compared in the student's precision."""
    theirs, mine = teacher.model.encoder.state_dict(), student.model.encoder.state_dict()
    return theirs.keys() == mine.keys() and all(
        torch.equal(theirs[name].to(mine[name].device, mine[name].dtype), mine[name]) for name in mine
    )
