"""Speculative decoding: a student drafts, its teacher checks, and the text is the teacher's own greedy one.

The teacher reads all drafted tokens in one pass and keeps those it would have written itself, and one more of its own
(Leviathan et al. 2023, greedy case). transformers' assistant does so for one clip at a time; here each row of a batch
keeps as many tokens as it can (`eval.decoding.slot_decoder`), and what is refused is written over without ever being seen.

"Own" holds to rounding: a pass over several tokens sums in another order than one over one, which may turn a choice
between two tokens that are equally likely to six digits, as another batch size may.

B batch, F mel bins, T mel frames, S encoder positions, D width, L tokens, N known tokens, K drafted tokens,
V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from eval.decoding.slot_decoder import SlotDecoder
from eval.runtimes.model_format import JsonSettings, load_tokenizer
from eval.runtimes.torch_runtime import TorchRuntime, TorchState, load_model
from recipes.core.errors import UserError

MOST = 16
"""Tokens drafted at once where the length is found as it goes."""


@dataclass
class Acceptance:
    """What became of the drafts so far."""

    drafted: int = 0
    """Tokens drafted for rows that had not ended, as far as a draft's own end of text."""
    accepted: int = 0
    written: int = 0
    """Tokens of the final texts, the teacher's own among them."""
    passes: int = 0
    """Of the teacher, counted for each row that had not ended."""

    @property
    def figures(self) -> dict[str, float | int | None]:
        """Counts, the share accepted, and tokens a teacher pass, which are 1 without a draft."""
        return {
            "drafted": self.drafted, "accepted": self.accepted, "passes": self.passes, "tokens": self.written,
            "acceptance": round(self.accepted / self.drafted, 4) if self.drafted else None,
            "tokens_per_pass": round(self.written / self.passes, 3) if self.passes else None,
        }  # fmt: skip


@dataclass
class SpeculativeState(TorchState):
    """The teacher's state, and the encoder states [B, S, D] that the draft listens to."""

    draft_BSD: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class SpeculativeRuntime(TorchRuntime):
    """A teacher that is helped, behind the `Generator` face; step by step it is the plain teacher.

    With `draft_tokens` it drafts that many at once; None goes on while the draft's own probabilities promise more than
    a step of it costs.
    """

    def __init__(
        self, teacher: WhisperForConditionalGeneration, draft: WhisperForConditionalGeneration,
        draft_tokens: int | None = None, device: torch.device | str = "cpu",
    ):  # fmt: skip
        super().__init__(teacher, device)
        self.draft, self.draft_tokens = draft.to(device).eval(), draft_tokens
        self.shares_encoder = same_weights(teacher.model.encoder, draft.model.encoder)
        # Of the teacher's pass; reading weights is what either costs at small batches.
        self.step_cost = _weights(draft) / _weights(teacher)
        self.acceptance = Acceptance()

    @torch.inference_mode()
    def encode(self, mel_BFT: np.ndarray) -> SpeculativeState:
        """Log-mel [B, F, T] to encoder states: once where the two encoders are one, else twice."""
        encoder_BSD = super().encode(mel_BFT).encoder_BSD
        if self.shares_encoder:
            return SpeculativeState(encoder_BSD, draft_BSD=encoder_BSD)
        frames = 2 * self.draft.config.max_source_positions
        mel = torch.from_numpy(np.ascontiguousarray(mel_BFT[..., :frames])).to(self.draft.device, self.draft.dtype)
        return SpeculativeState(encoder_BSD, draft_BSD=self.draft.model.encoder(mel).last_hidden_state)

    @torch.inference_mode()
    def generate(
        self, state: SpeculativeState, prompt: list[int], limit: int, *, end: int, suppress: list[int],
        suppress_first: list[int], scores: bool = False,
    ) -> list[tuple[list[int], float]]:  # fmt: skip
        """The teacher's greedy tokens of each row: see `Generator`. UserError for a prompt that asks for timestamps."""
        plain = getattr(self.model.generation_config, "no_timestamps_token_id", None)
        if plain is not None and prompt[-1] != plain:
            raise UserError("draft: speculative decoding writes text without timestamps; leave out draft or timestamps")
        # A row that is done goes on being read at its end while others are still written.
        slots = len(prompt) + limit + (self.draft_tokens or MOST) + 1
        teacher = SlotDecoder(self.model, state.encoder_BSD, slots)
        draft = SlotDecoder(self.draft, state.draft_BSD, slots)
        text = _Text(prompt, len(state.encoder_BSD), slots, limit, end, self.model.device)
        never_V, not_first_V = (_penalty(each, self.model) for each in (suppress, [*suppress, *suppress_first]))
        logprobs: list[list[float]] = [[] for _ in range(len(state.encoder_BSD))]
        unread = len(prompt)
        while text.open_B.any():
            first_V = not_first_V if unread == len(prompt) and not text.begun else never_V
            drafted_BK = self._drafted(draft, text, first_V, never_V)
            # Of what the teacher has not read: the prompt at first, then the one token it wrote itself.
            tokens_BL = torch.cat([text.last(unread), drafted_BK], dim=1)
            logits_BLV = teacher(tokens_BL, text.length_B - unread, last=drafted_BK.shape[1] + 1)
            logits_BLV[:, 0] += first_V
            logits_BLV[:, 1:] += never_V
            best_BL = logits_BLV.argmax(dim=-1)
            added = text.add(best_BL, drafted_BK, self.acceptance)
            if scores:
                chosen_BL = logits_BLV.log_softmax(-1).gather(2, best_BL[..., None])[..., 0]
                for row, count in enumerate(added):
                    logprobs[row] += chosen_BL[row, :count].tolist()
            unread = 1
        means = [float(np.mean(row)) if row else float("nan") for row in logprobs]
        return list(zip(text.made, means, strict=True))

    @torch.inference_mode()
    def along(self, state: TorchState, prompt: list[int], tokens: list[int]) -> list[np.ndarray]:
        """See `Generator`: the teacher's logits [1, V] of one clip, from one pass."""
        teacher = SlotDecoder(self.model, state.encoder_BSD, len(prompt) + len(tokens))
        read_1L = torch.tensor([[*prompt, *tokens[:-1]]], device=self.model.device)
        logits_LV = teacher(read_1L, read_1L.new_zeros(1))[0, len(prompt) - 1 :]
        return list(logits_LV[:, None].cpu().numpy())

    def _drafted(
        self, draft: "SlotDecoder", text: "_Text", first_V: torch.Tensor, never_V: torch.Tensor
    ) -> torch.Tensor:
        """The draft's next tokens [B, K]; K is 0 where every row may write but one more."""
        # Where all drafts were kept the draft has not read the last of them: it reads two tokens, in all rows.
        tokens_BL = text.last(2) if text.begun else text.last(text.prompt)
        start_B = text.length_B - tokens_BL.shape[1]
        drafted: list[torch.Tensor] = []
        sure_B = torch.ones(len(tokens_BL), device=tokens_BL.device)
        promised, most = 1.0, min(self.draft_tokens or MOST, text.room - 1)
        going_B = text.open_B.clone()
        while len(drafted) < most and going_B.any():
            logits_BV = draft(tokens_BL, start_B, last=1)[:, 0] + (never_V if drafted else first_V)
            start_B = start_B + tokens_BL.shape[1]
            top_B, next_B = logits_BV.max(dim=-1)
            tokens_BL = next_B[:, None]
            drafted.append(next_B)
            going_B &= next_B != text.end
            if self.draft_tokens is None:
                sure_B = sure_B * (top_B - logits_BV.logsumexp(dim=-1)).exp()
                sure = float(sure_B[text.open_B].mean())
                promised += sure
                # One more is worth at most `sure` tokens, and would otherwise be had at this round's price.
                if sure < self.step_cost * promised / (1 + self.step_cost * len(drafted)):
                    break
        return torch.stack(drafted, dim=1) if drafted else start_B.new_zeros(len(start_B), 0)


class _Text:
    """What is known of each row: the prompt and what was kept."""

    def __init__(self, prompt: list[int], batch: int, slots: int, limit: int, end: int, device: torch.device):
        self.prompt, self.limit, self.end = len(prompt), limit, end
        self.tokens_BN = torch.zeros((batch, slots + 1), dtype=torch.int64, device=device)
        self.tokens_BN[:, : self.prompt] = torch.tensor(prompt, device=device)
        self.length_B = torch.full((batch,), self.prompt, device=device)
        self.open_B = torch.full((batch,), limit > 0, device=device)
        self.made: list[list[int]] = [[] for _ in range(batch)]

    @property
    def begun(self) -> bool:
        """Whether anything was written."""
        return any(self.made)

    @property
    def room(self) -> int:
        """Most tokens that a row may still write."""
        return self.limit - min(len(row) for row, open_ in zip(self.made, self.open_B.tolist(), strict=True) if open_)

    def last(self, count: int) -> torch.Tensor:
        """The last so many tokens of each row [B, count]."""
        places_BL = self.length_B[:, None] - count + torch.arange(count, device=self.length_B.device)
        return self.tokens_BN.gather(1, places_BL)

    def add(self, best_BL: torch.Tensor, drafted_BK: torch.Tensor, acceptance: Acceptance) -> list[int]:
        """Keep the drafts that the teacher would have written and its next token; how many each row got."""
        kept_B = (best_BL[:, :-1] == drafted_BK).long().cumprod(dim=1).sum(dim=1)
        places_BL = self.length_B[:, None] + torch.arange(best_BL.shape[1], device=best_BL.device)
        self.tokens_BN.scatter_(1, places_BL, best_BL)  # beyond what is kept it will be written over
        counts = []
        rows = zip(self.made, best_BL.tolist(), drafted_BK.tolist(), kept_B.tolist(), strict=True)
        for row, (made, best, drafted, kept) in enumerate(rows):
            if not self.open_B[row]:
                counts.append(0)
                continue
            new = _until(best[: kept + 1], self.end)[: self.limit - len(made)]
            made += new
            self.length_B[row] += len(new)
            self.open_B[row] = new[-1] != self.end and len(made) < self.limit
            counts.append(len(new))
            acceptance.drafted += (tried := len(_until(drafted, self.end)))
            acceptance.accepted += min(kept, tried)
            acceptance.written += len(new)
            acceptance.passes += 1
        return counts


def open_speculative(teacher: Path, draft: Path, threads: int, draft_tokens: int | None = None) -> SpeculativeRuntime:
    """Two model folders as one runtime; UserError for a draft that cannot be one."""
    torch.set_num_threads(threads)
    check_draft(teacher, draft)
    return SpeculativeRuntime(load_model(teacher), load_model(draft), draft_tokens)


def check_draft(teacher: Path, draft: Path) -> None:
    """UserError for a model folder with other tokens or other mel bins than its teacher's."""
    if load_tokenizer(teacher).get_vocab() != load_tokenizer(draft).get_vocab():
        raise UserError(
            f"draft {draft}: expected the vocabulary of {teacher}, found another; a student with fewer tokens cannot "
            "draft, name one without compress.vocabulary"
        )
    bins = [JsonSettings.read(folder / "config.json")["num_mel_bins"] for folder in (teacher, draft)]
    if bins[0] != bins[1]:
        raise UserError(f"draft {draft}: expected {bins[0]} mel bins as {teacher} has, found {bins[1]}")


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether both hold the same tensors under the same names, to the bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _weights(model: WhisperForConditionalGeneration) -> int:
    return sum(parameter.numel() for parameter in model.model.decoder.parameters())


def _penalty(tokens: Sequence[int], model: WhisperForConditionalGeneration) -> torch.Tensor:
    """What is added to logits [V] so that these tokens never come."""
    penalty_V = torch.zeros(model.config.vocab_size, device=model.device)
    penalty_V[list(tokens)] = -torch.inf
    return penalty_V


def _until(tokens: list[int], end: int) -> list[int]:
    """The tokens as far as the end of text, that included."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
