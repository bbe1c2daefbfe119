"""Between the teacher's tokens and those of a student whose vocabulary was trimmed.

Labels are written in the teacher's ids and stored logits point at them; the live teacher reads and predicts them. The
student's tokens are some of the teacher's, with ids of their own: what it learns is the teacher's distribution over
these, the rest left out.

V the teacher's vocabulary, K the student's, N predicted tokens.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from data_prep.labels.label_store import Decoding, Label, TokenDistribution
from eval.runtimes.model_format import load_tokenizer

NEVER = -1e4
"""Logit of a token that is left out: a probability of exactly zero, and a logarithm that still is a number."""


@dataclass(frozen=True)
class VocabularyMap:
    """One student's vocabulary beside its teacher's."""

    theirs_K: torch.Tensor
    """The teacher's id of each of the student's tokens, int64."""
    mine_V: np.ndarray
    """The student's id of each of the teacher's tokens; -1 where it has none."""
    tokenizer: Tokenizer
    """The student's."""

    @classmethod
    def between(cls, teacher: Path, student: Path) -> "VocabularyMap | None":
        """Of two model folders; None where both have the same vocabulary."""
        tokenizer = load_tokenizer(student)
        theirs, mine = load_tokenizer(teacher).get_vocab(), tokenizer.get_vocab()
        if theirs == mine:
            return None
        theirs_K = np.array([theirs[token] for token, _ in sorted(mine.items(), key=lambda item: item[1])])
        mine_V = np.full(max(theirs.values()) + 1, -1)
        mine_V[theirs_K] = np.arange(len(theirs_K))
        return cls(torch.from_numpy(theirs_K), mine_V, tokenizer)

    def label(self, label: Label) -> Label:
        """The same label in the student's ids."""
        return replace(label, plain=self._plain(label.plain), timed=label.timed and self._decoding(label.timed))

    def _plain(self, decoding: Decoding) -> Decoding:
        found = self._decoding(decoding)
        if found is not None:
            return found
        # Only validation labels may use a token that was left out: the same text, spelled with others.
        ends = [*decoding.tokens[: decoding.prompt_length], *(decoding.tokens[-1:] if decoding.ended else [])]
        ends = self.mine_V[ends].tolist()
        said = self.tokenizer.encode(f" {decoding.text.strip()}", add_special_tokens=False).ids
        return replace(decoding, tokens=ends[: decoding.prompt_length] + said + ends[decoding.prompt_length :])

    def _decoding(self, decoding: Decoding) -> Decoding | None:
        tokens = self.mine_V[decoding.tokens].tolist()
        return replace(decoding, tokens=tokens) if min(tokens) >= 0 else None

    def distribution(self, kept: TokenDistribution) -> TokenDistribution:
        """Stored logits at the student's ids; what it has no token for gets none of the probability."""
        ids_NK = self.mine_V[kept.ids_NK]
        order_NK = np.argsort(ids_NK < 0, axis=1, kind="stable")
        width = int((ids_NK >= 0).sum(axis=1).max(initial=1))
        ids_NK, logits_NK = (np.take_along_axis(each, order_NK, 1)[:, :width] for each in (ids_NK, kept.logits_NK))
        for row in np.flatnonzero(ids_NK[:, -1] < 0):
            # Ids of a row must differ: the places left over name tokens that are not in it.
            missing = ids_NK[row] < 0
            logits_NK[row, missing] = NEVER
            ids_NK[row, missing] = np.setdiff1d(np.arange(len(self.theirs_K)), ids_NK[row])[: missing.sum()]
        return TokenDistribution(ids_NK.astype(np.int32), logits_NK, kept.rest_N)
