"""Speculative decoding: a student drafts tokens, its teacher verifies them; the text is the teacher's greedy text.

The teacher reads all drafted tokens in one pass, keeps those that it would have generated itself, and adds one token of
its own (Leviathan et al. 2023, greedy case). transformers' assisted generation does this for one clip at a time. Here
every row of a batch keeps as many tokens as it can (`eval.decoding.slot_decoder`); the slots of rejected tokens are
overwritten before anything attends to them.

The text equals the teacher's up to rounding: a pass over several tokens adds numbers in another order than a pass over
one token, which can turn a choice between two tokens whose probabilities agree to six digits. Another batch size can do
the same.

B batch, F mel bins, T mel frames, S encoder positions, D width, L tokens, K drafted tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from eval.decoding.slot_decoder import SlotDecoder
from eval.decoding.text_batch import DraftStatistics, TextBatch
from eval.runtimes.model_format import JsonSettings, load_tokenizer
from eval.runtimes.torch_runtime import TorchRuntime, TorchState, load_model
from recipes.core.errors import UserError

MAX_DRAFT_TOKENS = 16
"""Maximum number of tokens drafted for one pass if `draft_tokens` does not set it."""


@dataclass
class SpeculativeState(TorchState):
    """Decoding state of the teacher, with the encoder output that the draft model attends to."""

    draft_BSD: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class SpeculativeRuntime(TorchRuntime):
    """A teacher with a draft model as a `Generator`; `step` is that of the teacher alone.

    Args:
        teacher: The model whose text is generated.
        draft: The model that drafts, with the same vocabulary and mel bins.
        draft_tokens: Number of tokens to draft for each pass of the teacher. None drafts on while the draft's own
            probabilities promise more tokens than a draft step costs.
        device: Where both models are placed.
    """

    def __init__(
        self, teacher: WhisperForConditionalGeneration, draft: WhisperForConditionalGeneration,
        draft_tokens: int | None = None, device: torch.device | str = "cpu",
    ):  # fmt: skip
        super().__init__(teacher, device)
        self.draft, self.draft_tokens = draft.to(device).eval(), draft_tokens
        self.shares_encoder = same_weights(teacher.model.encoder, draft.model.encoder)
        # Cost of a draft step relative to a teacher pass: at small batches both are bound by reading their weights.
        self.step_cost = _decoder_size(draft) / _decoder_size(teacher)
        self.statistics = DraftStatistics()

    @torch.inference_mode()
    def encode(self, mel_BFT: np.ndarray) -> SpeculativeState:
        """See `Runtime.encode`. Runs only the teacher's encoder if both encoders have the same weights."""
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
        """See `Generator.generate`. Raises UserError if the prompt requests timestamps."""
        no_timestamps = getattr(self.model.generation_config, "no_timestamps_token_id", None)
        if no_timestamps is not None and prompt[-1] != no_timestamps:
            raise UserError("draft: speculative decoding writes text without timestamps; leave out draft or timestamps")
        # Finished rows are read on at their end while others are still being written, so they need slots there.
        slots = len(prompt) + limit + (self.draft_tokens or MAX_DRAFT_TOKENS) + 1
        teacher = SlotDecoder(self.model, state.encoder_BSD, slots)
        draft = SlotDecoder(self.draft, state.draft_BSD, slots)
        text = TextBatch(prompt, len(state.encoder_BSD), slots, limit, end, self.model.device)
        later_V, first_V = (_penalty(tokens, self.model) for tokens in (suppress, [*suppress, *suppress_first]))
        logprobs: list[list[float]] = [[] for _ in range(len(state.encoder_BSD))]
        unread = len(prompt)  # known tokens that the teacher has not read: at first the prompt, then its own last token
        while text.open_B.any():
            next_V = later_V if text.begun else first_V
            drafted_BK = self._draft(draft, text, next_V, later_V)
            tokens_BL = torch.cat([text.last(unread), drafted_BK], dim=1)
            logits_BLV = teacher(tokens_BL, text.length_B - unread, last=drafted_BK.shape[1] + 1)
            logits_BLV[:, 0] += next_V
            logits_BLV[:, 1:] += later_V
            best_BL = logits_BLV.argmax(dim=-1)
            added = text.add(best_BL, drafted_BK, self.statistics)
            if scores:
                logprob_BL = logits_BLV.log_softmax(-1).gather(2, best_BL[..., None])[..., 0]
                for row, count in enumerate(added):
                    logprobs[row] += logprob_BL[row, :count].tolist()
            unread = 1
        means = [float(np.mean(row)) if row else float("nan") for row in logprobs]
        return list(zip(text.generated, means, strict=True))

    @torch.inference_mode()
    def forced_logits(self, state: TorchState, prompt: list[int], tokens: list[int]) -> list[np.ndarray]:
        """See `Generator.forced_logits`: the teacher's logits, from a single pass."""
        teacher = SlotDecoder(self.model, state.encoder_BSD, len(prompt) + len(tokens))
        input_1L = torch.tensor([[*prompt, *tokens[:-1]]], device=self.model.device)
        logits_LV = teacher(input_1L, input_1L.new_zeros(1))[0, len(prompt) - 1 :]
        return list(logits_LV[:, None].cpu().numpy())

    def _draft(self, draft: SlotDecoder, text: TextBatch, next_V: torch.Tensor, later_V: torch.Tensor) -> torch.Tensor:
        """Return the draft's next tokens [B, K]; K is 0 if every row may get only one more token.

        `next_V` is added to the logits of the first drafted token, `later_V` to those of the others.
        """
        # If all drafted tokens were accepted in the last round, the draft has not read the last of them. All rows
        # therefore read two tokens.
        tokens_BL = text.last(2) if text.begun else text.last(text.prompt_length)
        start_B = text.length_B - tokens_BL.shape[1]
        drafted: list[torch.Tensor] = []
        accepted_B = torch.ones(len(tokens_BL), device=tokens_BL.device)  # probability that all drafted are accepted
        expected, limit = 1.0, min(self.draft_tokens or MAX_DRAFT_TOKENS, text.room - 1)
        going_B = text.open_B.clone()
        while len(drafted) < limit and going_B.any():
            logits_BV = draft(tokens_BL, start_B, last=1)[:, 0] + (later_V if drafted else next_V)
            start_B = start_B + tokens_BL.shape[1]
            top_B, next_B = logits_BV.max(dim=-1)
            tokens_BL = next_B[:, None]
            drafted.append(next_B)
            going_B &= next_B != text.end
            if self.draft_tokens is None:
                accepted_B = accepted_B * (top_B - logits_BV.logsumexp(dim=-1)).exp()
                accepted = float(accepted_B[text.open_B].mean())
                expected += accepted  # tokens that this round is expected to add
                # Another draft step adds at most `accepted` tokens. Stop if this round has produced its tokens at a
                # lower cost than that.
                if accepted < self.step_cost * expected / (1 + self.step_cost * len(drafted)):
                    break
        return torch.stack(drafted, dim=1) if drafted else start_B.new_zeros(len(start_B), 0)


def open_speculative(teacher: Path, draft: Path, threads: int, draft_tokens: int | None = None) -> SpeculativeRuntime:
    """Load two model folders as one runtime. Raises UserError if `draft` cannot draft for `teacher`."""
    torch.set_num_threads(threads)
    check_draft(teacher, draft)
    return SpeculativeRuntime(load_model(teacher), load_model(draft), draft_tokens)


def check_draft(teacher: Path, draft: Path) -> None:
    """Raise UserError if the two model folders differ in vocabulary or number of mel bins."""
    if load_tokenizer(teacher).get_vocab() != load_tokenizer(draft).get_vocab():
        raise UserError(
            f"draft {draft}: expected the vocabulary of {teacher}, found another; a student with fewer tokens cannot "
            "draft, name one without compress.vocabulary"
        )
    bins = [JsonSettings.read(folder / "config.json")["num_mel_bins"] for folder in (teacher, draft)]
    if bins[0] != bins[1]:
        raise UserError(
            f"draft {draft}: expected {bins[0]} mel bins as {teacher} has, found {bins[1]}; name another student"
        )


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Return whether two modules have bitwise equal tensors under the same names."""
    weights, others = one.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def _decoder_size(model: WhisperForConditionalGeneration) -> int:
    return sum(parameter.numel() for parameter in model.model.decoder.parameters())


def _penalty(tokens: Sequence[int], model: WhisperForConditionalGeneration) -> torch.Tensor:
    """Return what to add to logits [V] so that these tokens are never chosen."""
    penalty_V = torch.zeros(model.config.vocab_size, device=model.device)
    penalty_V[list(tokens)] = -torch.inf
    return penalty_V
