"""Mapping between the teacher's tokens and those of a student with a trimmed vocabulary.

Labels and stored logits use the teacher's token ids, and the live teacher reads and predicts the teacher's tokens. The
student's tokens are a subset of the teacher's with ids of their own. The student learns the teacher's distribution
restricted to this subset and renormalised.

V the teacher's vocabulary, K the student's, N predicted tokens. Stored logits [N, K] have their own K.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from data_prep.labels.label_store import Decoding, Label, TokenDistribution
from eval.runtimes.model_format import load_tokenizer

EXCLUDED_LOGIT = -1e4
"""Logit of a token that is excluded: its probability is exactly zero, and the logarithm of it still finite."""


@dataclass(frozen=True)
class VocabularyMap:
    """The token ids of a student's vocabulary and its teacher's."""

    teacher_ids_K: torch.Tensor
    """The teacher's id of each student token, int64."""
    student_ids_V: np.ndarray
    """The student's id of each teacher token; -1 if the student does not have it."""
    tokenizer: Tokenizer
    """The student's tokenizer."""

    @classmethod
    def between(cls, teacher: Path, student: Path) -> "VocabularyMap | None":
        """Return the map between the vocabularies of two model folders; None if they are the same."""
        tokenizer = load_tokenizer(student)
        teacher_ids, student_ids = load_tokenizer(teacher).get_vocab(), tokenizer.get_vocab()
        if teacher_ids == student_ids:
            return None
        by_student_id = sorted(student_ids.items(), key=lambda item: item[1])
        teacher_ids_K = np.array([teacher_ids[token] for token, _ in by_student_id])
        student_ids_V = np.full(max(teacher_ids.values()) + 1, -1)
        student_ids_V[teacher_ids_K] = np.arange(len(teacher_ids_K))
        return cls(torch.from_numpy(teacher_ids_K), student_ids_V, tokenizer)

    def map_label(self, label: Label) -> Label:
        """Return the label in the student's token ids.

        A timed decoding that uses a token the student does not have is dropped; the plain one is encoded again.
        """
        return replace(label, plain=self._map_plain(label.plain), timed=label.timed and self._map_tokens(label.timed))

    def _map_plain(self, decoding: Decoding) -> Decoding:
        mapped = self._map_tokens(decoding)
        if mapped is not None:
            return mapped
        # Only validation labels may use a token that the student does not have. Encode their text with other tokens.
        special = [*decoding.tokens[: decoding.prompt_length], *(decoding.tokens[-1:] if decoding.ended else [])]
        special = self.student_ids_V[special].tolist()
        text = self.tokenizer.encode(f" {decoding.text.strip()}", add_special_tokens=False).ids
        return replace(decoding, tokens=special[: decoding.prompt_length] + text + special[decoding.prompt_length :])

    def _map_tokens(self, decoding: Decoding) -> Decoding | None:
        """Return the decoding in the student's ids; None if the student lacks one of its tokens."""
        tokens = self.student_ids_V[decoding.tokens].tolist()
        return replace(decoding, tokens=tokens) if min(tokens) >= 0 else None

    def map_distribution(self, stored: TokenDistribution) -> TokenDistribution:
        """Return stored logits with the student's token ids.

        Tokens that the student does not have are dropped. The tail's log-sum-exp is unchanged.
        """
        ids_NK = self.student_ids_V[stored.ids_NK]
        # Move each row's dropped tokens to its end, and cut all rows to the length of the one that keeps the most.
        order_NK = np.argsort(ids_NK < 0, axis=1, kind="stable")
        width = int((ids_NK >= 0).sum(axis=1).max(initial=1))
        ids_NK, logits_NK = (np.take_along_axis(array, order_NK, 1)[:, :width] for array in (ids_NK, stored.logits_NK))
        for row in np.flatnonzero(ids_NK[:, -1] < 0):
            # The ids of a row must differ, so the free places get tokens that the row does not contain.
            missing = ids_NK[row] < 0
            logits_NK[row, missing] = EXCLUDED_LOGIT
            ids_NK[row, missing] = np.setdiff1d(np.arange(len(self.teacher_ids_K)), ids_NK[row])[: missing.sum()]
        return TokenDistribution(ids_NK.astype(np.int32), logits_NK, stored.tail_N)
