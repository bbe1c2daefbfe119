"""TODO: eval.runtimes.interface."""

from typing import Any, Protocol, runtime_checkable

import numpy as np


class Runtime(Protocol):
    """What a device runs: the encoder once a clip, the decoder once a token. The state is the runtime's own."""

    def encode(self, mel_BFT: np.ndarray) -> Any:
        """Log-mel float32 [B, F, T] to a decoding state."""
        ...

    def step(self, tokens_BL: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """Int64 tokens after those already given: float32 logits [B, V] of the last one, and the new state."""
        ...


@runtime_checkable
class Generator(Runtime, Protocol):
    """A runtime with a decoding loop of its own, faster than step by step."""

    def generate(
        self, state: Any, prompt: list[int], limit: int, *, end: int, suppress: list[int], suppress_first: list[int],
        scores: bool = False,
    ) -> list[tuple[list[int], float]]:  # fmt: skip
        """Greedy tokens of each row after one prompt, and their mean natural-log probability (NaN without `scores`).

        A row has `limit` tokens, or fewer and the end token last. Those in `suppress` never come, those in
        `suppress_first` not as the first.
        """
        ...

    def along(self, state: Any, prompt: list[int], tokens: list[int]) -> list[np.ndarray]:
        """Of one clip the float32 logits [1, V] after the prompt and after each of the tokens but the last."""
        ...
