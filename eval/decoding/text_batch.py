"""The texts of a batch during speculative decoding, and the counts of drafted and accepted tokens.

B batch, N known tokens, K drafted tokens, L = K + 1 tokens chosen by the teacher.
"""

from dataclasses import dataclass

import torch


@dataclass
class DraftStatistics:
    """Counts of drafted and accepted tokens, over all texts so far."""

    drafted: int = 0
    """Tokens drafted for unfinished rows, up to the end of text if the draft has one."""
    accepted: int = 0
    """Drafted tokens that the teacher kept."""
    written: int = 0
    """Tokens of the final texts, including those that the teacher added itself."""
    passes: int = 0
    """Passes of the teacher, counted once for each unfinished row."""

    @property
    def summary(self) -> dict[str, float | int | None]:
        """The counts, the share of accepted tokens, and the tokens per teacher pass (1 without a draft)."""
        return {
            "drafted": self.drafted, "accepted": self.accepted, "passes": self.passes, "tokens": self.written,
            "acceptance": round(self.accepted / self.drafted, 4) if self.drafted else None,
            "tokens_per_pass": round(self.written / self.passes, 3) if self.passes else None,
        }  # fmt: skip


class TextBatch:
    """The known tokens of every row: the prompt, then the tokens generated so far.

    Args:
        prompt: Tokens that precede every text.
        batch: Number of rows.
        slots: Number of positions that the decoders' caches have.
        limit: Maximum number of generated tokens per row.
        end: The end-of-text token.
        device: Where the tensors are placed.

    Attributes:
        tokens_BN: The known tokens of each row; those beyond its length are meaningless.
        length_B: Number of known tokens of each row.
        open_B: Whether a row is unfinished.
        generated: The generated tokens of each row, without the prompt.
    """

    def __init__(self, prompt: list[int], batch: int, slots: int, limit: int, end: int, device: torch.device):
        self.prompt_length, self.limit, self.end = len(prompt), limit, end
        self.tokens_BN = torch.zeros((batch, slots + 1), dtype=torch.int64, device=device)
        self.tokens_BN[:, : len(prompt)] = torch.tensor(prompt, device=device)
        self.length_B = torch.full((batch,), len(prompt), device=device)
        self.open_B = torch.full((batch,), limit > 0, device=device)
        self.generated: list[list[int]] = [[] for _ in range(batch)]

    @property
    def begun(self) -> bool:
        """Whether anything was generated."""
        return any(self.generated)

    @property
    def room(self) -> int:
        """The largest number of tokens that an unfinished row may still get."""
        rows = zip(self.generated, self.open_B.tolist(), strict=True)
        return self.limit - min(len(row) for row, unfinished in rows if unfinished)

    def last(self, count: int) -> torch.Tensor:
        """Return the last `count` tokens of each row [B, count]."""
        positions_BL = self.length_B[:, None] - count + torch.arange(count, device=self.length_B.device)
        return self.tokens_BN.gather(1, positions_BL)

    def add(self, best_BL: torch.Tensor, drafted_BK: torch.Tensor, statistics: DraftStatistics) -> list[int]:
        """Add the accepted tokens and the teacher's next one; return how many tokens each row got.

        `best_BL` holds the teacher's choices: those at the drafted positions and the one after them, so L = K + 1.
        """
        accepted_B = (best_BL[:, :-1] == drafted_BK).long().cumprod(dim=1).sum(dim=1)
        positions_BL = self.length_B[:, None] + torch.arange(best_BL.shape[1], device=best_BL.device)
        self.tokens_BN.scatter_(1, positions_BL, best_BL)  # tokens beyond the new length will be overwritten
        counts = []
        rows = zip(self.generated, best_BL.tolist(), drafted_BK.tolist(), accepted_B.tolist(), strict=True)
        for row, (generated, best, drafted, accepted) in enumerate(rows):
            if not self.open_B[row]:
                counts.append(0)
                continue
            new = _until_end(best[: accepted + 1], self.end)[: self.limit - len(generated)]
            generated += new
            self.length_B[row] += len(new)
            self.open_B[row] = new[-1] != self.end and len(generated) < self.limit
            counts.append(len(new))
            statistics.drafted += (tried := len(_until_end(drafted, self.end)))
            statistics.accepted += min(accepted, tried)
            statistics.written += len(new)
            statistics.passes += 1
        return counts


def _until_end(tokens: list[int], end: int) -> list[int]:
    """Return the tokens up to and including the first end of text; all tokens if there is none."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
