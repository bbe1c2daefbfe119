"""Times of single decoder passes of a teacher and its draft, and the time of a whole list of passes.

A pass is one call of a decoder; it reads one or more tokens of every text in the batch.

B batch, F mel bins, T mel frames, S encoder positions, D model width, L tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from eval.decoding.slot_decoder import SlotDecoder
from eval.decoding.speculative import SpeculativeRuntime
from eval.runtimes.torch_runtime import TorchRuntime, TorchState
from tests.bench.interleaved_timing import median_times_ms

PROMPT_TOKENS, PAST_TOKENS = 4, 20
"""Tokens of a first pass, and tokens in the cache before a later one."""
TIMED_LENGTHS = {"teacher": (1, 2, 4, 8, 20), "draft": (1, 2, 4)}
"""Numbers of tokens for which a pass is timed; other numbers are interpolated."""
SCORED_TOKENS = {"teacher": None, "draft": 1}
"""How many of the last tokens of a pass get logits; None for all."""

Passes = list[tuple[str, int]]
"""The passes on one batch: which decoder, and how many tokens it reads.

The decoder is `teacher` or `draft`, or `plain`: the teacher as it runs without a draft.
"""
TimedCall = Callable[[int], object]


@dataclass(frozen=True)
class PassCosts:
    """Processor times of the passes on a batch of one size, in ms."""

    passes: Mapping[str, Mapping[int, float]]
    """Time of a pass by decoder and number of tokens."""
    keys: Mapping[str, float]
    """Additional time of a decoder's first pass, which projects the cross-attention's keys and values."""
    encoder: float

    def total_ms(self, batches: Sequence[Passes], later_pass_factor: float = 1.0) -> float:
        """Return the time of all passes on all batches, without the encoder.

        The time of every pass but a decoder's first on a batch is multiplied by `later_pass_factor`.
        """
        total = 0.0
        for passes in batches:
            started = set[str]()
            for decoder, tokens in passes:
                times = self.passes[decoder]
                ms = float(np.interp(tokens, list(times), list(times.values())))
                is_first = decoder in self.keys.keys() - started
                total += ms + self.keys[decoder] if is_first else later_pass_factor * ms
                started.add(decoder)
        return total


def passes_without_draft(tokens: int) -> Passes:
    """Return the teacher's passes without a draft on a batch whose longest text has `tokens` tokens."""
    return [("teacher", PROMPT_TOKENS)] + [("plain", 1)] * (tokens - 1)


@contextmanager
def record_passes(**models: WhisperForConditionalGeneration) -> Iterator[Passes]:
    """Record the passes that the decoders of these models make while the context is open."""
    passes: Passes = []

    def record(name: str, _module: object, _args: object, kwargs: dict[str, Any]) -> None:
        passes.append((name, kwargs["input_ids"].shape[1]))

    hooks = [
        model.model.decoder.register_forward_pre_hook(partial(record, name), with_kwargs=True)
        for name, model in models.items()
    ]
    yield passes
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def measure_pass_costs(
    runtime: SpeculativeRuntime, batch_sizes: Sequence[int], runs: int, name: str
) -> dict[int, PassCosts]:
    """Measure the costs at each batch size; what is computed per window and not per batch is measured for one window.

    `name` is shown with the progress.
    """
    models = {"teacher": runtime.model, "draft": runtime.draft}
    calls: dict[tuple[str, int], TimedCall] = {("encoder", 0): partial(_encode, TorchRuntime(runtime.model))}
    for decoder, model in models.items():
        calls[decoder, 0] = partial(_run_first_pass, model, SCORED_TOKENS[decoder])
        calls[decoder, PROMPT_TOKENS] = _later_passes(model, 1, (PROMPT_TOKENS,), SCORED_TOKENS[decoder])[PROMPT_TOKENS]
    window_ms = {key: cpu for key, (_, cpu) in median_times_ms(calls, runs, f"{name}, window").items()}
    keys_ms = {decoder: max(0.0, window_ms[decoder, 0] - window_ms[decoder, PROMPT_TOKENS]) for decoder in models}
    costs = dict[int, PassCosts]()
    for size in batch_sizes:
        calls = {
            (decoder, tokens): call
            for decoder, model in models.items()
            for tokens, call in _later_passes(model, size, TIMED_LENGTHS[decoder], SCORED_TOKENS[decoder]).items()
        }
        calls["plain", 1] = _plain_step(runtime.model, size)
        pass_ms: dict[str, dict[int, float]] = {decoder: {} for decoder, _ in calls}
        for (decoder, tokens), (_, cpu) in median_times_ms(calls, runs, f"{name}, batch {size}").items():
            pass_ms[decoder][tokens] = cpu
        keys = {decoder: size * ms for decoder, ms in keys_ms.items()}
        costs[size] = PassCosts(pass_ms, keys, size * window_ms["encoder", 0])
    return costs


def _later_passes(
    model: WhisperForConditionalGeneration, size: int, lengths: Sequence[int], scored: int | None
) -> dict[int, TimedCall]:
    """Return, for each number of tokens, a pass over so many tokens after `PAST_TOKENS` tokens."""
    start_B, tokens_BL = torch.full((size,), PAST_TOKENS), _tokens(model, size, PAST_TOKENS)
    decoder = SlotDecoder(model, _encoder_states(model, size), 2 * PAST_TOKENS)
    decoder(tokens_BL, start_B - PAST_TOKENS)
    return {tokens: partial(_best_tokens, decoder, tokens_BL[:, :tokens], start_B, scored) for tokens in lengths}


def _best_tokens(
    decoder: SlotDecoder, tokens_BL: torch.Tensor, start_B: torch.Tensor, scored: int | None, _run: int
) -> torch.Tensor:
    return decoder(tokens_BL, start_B, scored).argmax(dim=-1)


def _run_first_pass(model: WhisperForConditionalGeneration, scored: int | None, run: int) -> torch.Tensor:
    """Run a first pass over one prompt."""
    decoder = SlotDecoder(model, _encoder_states(model, 1), 2 * PAST_TOKENS)
    return _best_tokens(decoder, _tokens(model, 1, PROMPT_TOKENS), torch.zeros(1, dtype=torch.int64), scored, run)


def _plain_step(model: WhisperForConditionalGeneration, size: int) -> TimedCall:
    """Return a step of the teacher without a draft; its cache grows by one token."""
    runtime, tokens_BL = TorchRuntime(model), _tokens(model, size, PAST_TOKENS).numpy()
    _, state = runtime.step(tokens_BL, TorchState(_encoder_states(model, size)))
    return lambda _run: runtime.step(tokens_BL[:, :1], state)[0].argmax(axis=1)


def _encode(runtime: TorchRuntime, _run: int) -> TorchState:
    config = runtime.model.config
    return runtime.encode(np.zeros((1, config.num_mel_bins, 2 * config.max_source_positions), np.float32))


def _encoder_states(model: WhisperForConditionalGeneration, size: int) -> torch.Tensor:
    return torch.ones(size, model.config.max_source_positions, model.config.d_model)


def _tokens(model: WhisperForConditionalGeneration, size: int, count: int) -> torch.Tensor:
    return torch.arange(size * count).reshape(size, count) % model.config.vocab_size
