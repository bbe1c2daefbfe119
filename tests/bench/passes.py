"""What a teacher's and its draft's passes take at one shape and batch size, and what a list of passes adds up to.

B batch, F mel bins, T mel frames, S encoder positions, D width, L tokens.
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
from tests.bench.turns import medians_ms

PROMPT, PLACE = 4, 20
"""Tokens of the first pass; tokens that stand before a later one."""
READ = {"teacher": (1, 2, 4, 8, 20), "draft": (1, 2, 4)}
"""Tokens of the passes that are timed; between them the time is interpolated."""
CHOSEN = {"teacher": None, "draft": 1}
"""After how many of them a token is chosen; None for all."""

Passes = list[tuple[str, int]]
"""Of a batch, who reads how many tokens: `teacher`, `draft`, or `plain`, the teacher as it runs alone."""
Call = Callable[[int], object]


@dataclass(frozen=True)
class Costs:
    """What a batch of one size takes, processor time in ms."""

    passes: Mapping[str, Mapping[int, float]]
    """By who reads and how many tokens."""
    keys: Mapping[str, float]
    """More for the first pass of each, which makes the cross-attention's keys and values."""
    encoder: float

    def __call__(self, batches: Sequence[Passes], stretch: float = 1.0) -> float:
        """Of all batches without the encoder; later passes count `stretch` times."""
        total = 0.0
        for passes in batches:
            seen = set[str]()
            for who, tokens in passes:
                table = self.passes[who]
                spent = float(np.interp(tokens, list(table), list(table.values())))
                total += spent + self.keys[who] if who in self.keys.keys() - seen else stretch * spent
                seen.add(who)
        return total


def alone(tokens: int) -> Passes:
    """Those of the teacher without a draft, for a batch whose longest text has so many tokens."""
    return [("teacher", PROMPT)] + [("plain", 1)] * (tokens - 1)


@contextmanager
def watched(**models: WhisperForConditionalGeneration) -> Iterator[Passes]:
    """The passes that these models' decoders make meanwhile."""
    passes: Passes = []

    def note(who: str, _module: object, _args: object, given: dict[str, Any]) -> None:
        passes.append((who, given["input_ids"].shape[1]))

    hooks = [
        model.model.decoder.register_forward_pre_hook(partial(note, who), with_kwargs=True)
        for who, model in models.items()
    ]
    yield passes
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def costs(runtime: SpeculativeRuntime, sizes: Sequence[int], runs: int, name: str) -> dict[int, Costs]:
    """Of each batch size; what goes by window and not by batch is measured for one."""
    models = {"teacher": runtime.model, "draft": runtime.draft}
    calls: dict[tuple[str, int], Call] = {("encoder", 0): partial(_listen, TorchRuntime(runtime.model))}
    for who, model in models.items():
        calls[who, 0] = partial(_begin, model, CHOSEN[who])
        calls[who, PROMPT] = _later(model, 1, (PROMPT,), CHOSEN[who])[PROMPT]
    window_ms = {key: cpu for key, (_, cpu) in medians_ms(calls, runs, f"{name}, window").items()}
    keys_ms = {who: max(0.0, window_ms[who, 0] - window_ms[who, PROMPT]) for who in models}
    found = dict[int, Costs]()
    for size in sizes:
        calls = {
            (who, read): call
            for who, model in models.items()
            for read, call in _later(model, size, READ[who], CHOSEN[who]).items()
        }
        calls["plain", 1] = _alone(runtime.model, size)
        table: dict[str, dict[int, float]] = {who: {} for who, _ in calls}
        for (who, read), (_, cpu) in medians_ms(calls, runs, f"{name}, batch {size}").items():
            table[who][read] = cpu
        found[size] = Costs(table, {who: size * ms for who, ms in keys_ms.items()}, size * window_ms["encoder", 0])
    return found


def _later(
    model: WhisperForConditionalGeneration, size: int, lengths: Sequence[int], last: int | None
) -> dict[int, Call]:
    """Passes over so many tokens after others, and the choice of the best after the last so many of them."""
    start_B, tokens_BL = torch.full((size,), PLACE), _tokens(model, size, PLACE)
    decoder = SlotDecoder(model, _states(model, size), 2 * PLACE)
    decoder(tokens_BL, start_B - PLACE)
    return {read: partial(_choose, decoder, tokens_BL[:, :read], start_B, last) for read in lengths}


def _choose(
    decoder: SlotDecoder, tokens_BL: torch.Tensor, start_B: torch.Tensor, last: int | None, _run: int
) -> torch.Tensor:
    return decoder(tokens_BL, start_B, last).argmax(dim=-1)


def _begin(model: WhisperForConditionalGeneration, last: int | None, run: int) -> torch.Tensor:
    """A first pass over one prompt."""
    decoder = SlotDecoder(model, _states(model, 1), 2 * PLACE)
    return _choose(decoder, _tokens(model, 1, PROMPT), torch.zeros(1, dtype=torch.int64), last, run)


def _alone(model: WhisperForConditionalGeneration, size: int) -> Call:
    """A step of the plain teacher; its cache grows by one each time."""
    runtime, tokens_BL = TorchRuntime(model), _tokens(model, size, PLACE).numpy()
    _, state = runtime.step(tokens_BL, TorchState(_states(model, size)))
    return lambda _run: runtime.step(tokens_BL[:, :1], state)[0].argmax(axis=1)


def _listen(runtime: TorchRuntime, _run: int) -> TorchState:
    config = runtime.model.config
    return runtime.encode(np.zeros((1, config.num_mel_bins, 2 * config.max_source_positions), np.float32))


def _states(model: WhisperForConditionalGeneration, size: int) -> torch.Tensor:
    return torch.ones(size, model.config.max_source_positions, model.config.d_model)


def _tokens(model: WhisperForConditionalGeneration, size: int, count: int) -> torch.Tensor:
    return torch.arange(size * count).reshape(size, count) % model.config.vocab_size
