"""Token generation: run the teacher's decoder step by step over a batch that shrinks as its clips end.

Logits stay on the device; only the top K of each token are copied from it.

Axes: B batch, S encoder positions, D width, L tokens, V vocabulary, K stored logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache, WhisperForConditionalGeneration
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from eval.runtimes.model_format import ModelFormat


@dataclass
class Hypothesis:
    """The tokens predicted for one clip so far."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    distributions: list[tuple[np.ndarray, np.ndarray, float]] = field(default_factory=list)
    """Ids [K] and values [K] of the largest logits, and log-sum-exp of the others, of each token."""


class TokenGenerator:
    """Generates tokens with a Whisper decoder, greedily or by sampling.

    Args:
        model: The model.
        model_format: Its suppressed tokens and maximum length.
        no_speech: The no-speech token, if the vocabulary has one.
        top_k: Number of logits to store for each token; 0 stores none.
        tail_temperature: Softmax temperature at which the logits beyond the top K are summed.
        static_cache: Use a key-value cache of fixed shape, for compiled kernels, instead of a growing one.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, model_format: ModelFormat, no_speech: int | None, *, top_k: int,
        tail_temperature: float, static_cache: bool,
    ):  # fmt: skip
        self.model, self.format, self.no_speech = model, model_format, no_speech
        self.top_k, self.tail_temperature, self.static_cache = top_k, tail_temperature, static_cache

    def generate(
        self, encoder_BSD: torch.Tensor, prompt_BL: np.ndarray, *, timestamps: bool, temperature: float = 0.0,
        generators: Sequence[np.random.Generator] = (),
    ) -> tuple[list[float], list[Hypothesis]]:  # fmt: skip
        """Generate tokens until every clip has ended or is at the maximum length.

        With a growing cache, finished clips are removed from the batch whenever they make up half of it.

        Args:
            encoder_BSD: Encoder states.
            prompt_BL: Prompt of each clip.
            timestamps: Whether to apply Whisper's rules for timestamp tokens.
            temperature: 0 decodes greedily; a larger value is the temperature of sampling.
            generators: Random generator of each clip; needed for sampling only.

        Returns:
            The probability of the no-speech token at the first position, and the hypothesis, of each clip.
        """
        batch, prompt_length = prompt_BL.shape
        hypotheses = [Hypothesis() for _ in range(batch)]
        active = list(range(batch))  # clip of each row that is still in the batch
        rules = WhisperTimeStampLogitsProcessor(self.model.generation_config, prompt_length) if timestamps else None
        cache: EncoderDecoderCache | None = self._new_cache(encoder_BSD)
        history_BL = tokens_BL = torch.from_numpy(prompt_BL).to(encoder_BSD.device)
        no_speech_B = [0.0] * batch
        for step in range(self.format.max_length - prompt_length):
            logits_BLV, cache = self.run_decoder(tokens_BL, encoder_BSD, cache)
            if step == 0 and self.no_speech is not None:
                no_speech_B = logits_BLV[:, 0].softmax(-1)[:, self.no_speech].tolist()
            logits_BV = logits_BLV[:, -1]
            allowed_BV = self._suppress(logits_BV, history_BL, step == 0, rules)
            if temperature > 0:
                allowed_BV = _add_gumbel_noise(allowed_BV / temperature, [generators[clip] for clip in active])
            next_B = allowed_BV.argmax(dim=1)
            self._append(logits_BV, next_B, [hypotheses[clip] for clip in active])
            unfinished = [row for row, clip in enumerate(active) if hypotheses[clip].tokens[-1] != self.format.end]
            if not unfinished:
                break
            history_BL, tokens_BL = torch.cat([history_BL, next_B[:, None]], dim=1), next_B[:, None]
            if 2 * len(unfinished) <= len(active) and not self.static_cache:
                rows = torch.tensor(unfinished, device=encoder_BSD.device)
                assert cache is not None
                cache.batch_select_indices(rows)
                encoder_BSD, history_BL, tokens_BL = encoder_BSD[rows], history_BL[rows], tokens_BL[rows]
                active = [active[row] for row in unfinished]
        return no_speech_B, hypotheses

    def run_decoder(
        self, tokens_BL: torch.Tensor, encoder_BSD: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, EncoderDecoderCache | None]:
        """Return float32 logits [B, L, V] and the updated cache; without a cache, none is kept."""
        output = self.model.model.decoder(
            input_ids=tokens_BL, encoder_hidden_states=encoder_BSD, past_key_values=cache, use_cache=cache is not None
        )
        return self.model.proj_out(output.last_hidden_state).float(), output.past_key_values

    def _new_cache(self, encoder_BSD: torch.Tensor) -> EncoderDecoderCache:
        config = self.model.config
        if self.static_cache:
            return EncoderDecoderCache(
                StaticCache(config=config, max_cache_len=self.format.max_length),
                StaticCache(config=config, max_cache_len=encoder_BSD.shape[1]),
            )
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))

    def _suppress(
        self, logits_BV: torch.Tensor, history_BL: torch.Tensor, first: bool,
        timestamp_rules: WhisperTimeStampLogitsProcessor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Return a copy of the logits in which tokens that Whisper may not predict next are -inf."""
        allowed_BV = logits_BV.clone()
        allowed_BV[:, self.format.suppress] = -torch.inf
        if first:
            allowed_BV[:, self.format.suppress_first] = -torch.inf
        return timestamp_rules(history_BL, allowed_BV) if timestamp_rules is not None else allowed_BV

    def _append(self, logits_BV: torch.Tensor, next_B: torch.Tensor, hypotheses: Sequence[Hypothesis]) -> None:
        """Add token, log-probability and distribution to every hypothesis that has not ended."""
        logprob_B = (logits_BV.gather(1, next_B[:, None])[:, 0] - logits_BV.logsumexp(dim=1)).tolist()
        stored = None
        if self.top_k:
            stored = [part.cpu().numpy() for part in top_k_with_tail(logits_BV, self.top_k, self.tail_temperature)]
        for row, (hypothesis, token) in enumerate(zip(hypotheses, next_B.tolist(), strict=True)):
            if hypothesis.tokens and hypothesis.tokens[-1] == self.format.end:
                continue
            hypothesis.tokens.append(token)
            hypothesis.logprobs.append(logprob_B[row])
            if stored is not None:
                hypothesis.distributions.append((stored[0][row], stored[1][row], stored[2][row]))


def top_k_with_tail(
    logits_BV: torch.Tensor, k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids [B, K] and values [B, K] of the K largest logits, and log(sum(exp(z / T))) [B] of all others."""
    values_BK, ids_BK = logits_BV.topk(k, dim=1)
    others_BV = logits_BV.scatter(1, ids_BK, -torch.inf)
    return ids_BK, values_BK, (others_BV / temperature).logsumexp(dim=1)


def _add_gumbel_noise(logits_BV: torch.Tensor, generators: Sequence[np.random.Generator]) -> torch.Tensor:
    """Add Gumbel noise, so that the largest value is a sample from the softmax of the logits."""
    noise_BV = np.stack([generator.gumbel(size=logits_BV.shape[1]) for generator in generators])
    return logits_BV + torch.from_numpy(noise_BV).to(logits_BV)
