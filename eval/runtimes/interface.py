"""The protocols that a runtime implements, so that decoding, evaluation and benchmarks work with all of them.

To add a runtime NAME, write `eval/runtimes/NAME_runtime.py` with the contents of `RuntimeModule`, and add NAME to
`eval.runtimes.registry.RUNTIMES`. Import the inference library inside functions, so that a device needs only its own.

B batch, F mel bins, T mel frames, S encoder positions, D width, L tokens, V vocabulary.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from eval.runtimes.model_format import ModelSizes


class Runtime(Protocol):
    """A loaded Whisper model: `encode` runs once per batch of clips, `step` once per generated token.

    The decoding state is an object of the runtime's own type (for example encoder output and key-value cache). Callers
    pass it back unchanged and read one attribute of it: `encoder_BSD`, the encoder output, in any array type that
    numpy converts. A runtime whose cache has a fixed length has an attribute `max_tokens`: the longest text that it
    can decode, in tokens, the prompt included.
    """

    def encode(self, mel_BFT: np.ndarray) -> Any:
        """Run the encoder on log-mel features [B, F, T] float32; return the state before the first decoder step."""
        ...

    def step(self, tokens_BL: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """Feed int64 tokens [B, L] to the decoder; return the logits after the last one and the new state.

        The tokens follow those that earlier steps have fed: the first call gets the prompt, later calls one token per
        row. The logits [B, V] are float32, and the caller may overwrite them.

        A state from `encode` must stay usable, so that a caller can decode from it again. A state from `step` need not:
        callers continue from the latest one only, so the runtime may extend its cache in place.
        """
        ...


@runtime_checkable
class Generator(Runtime, Protocol):
    """A runtime with a greedy decoding loop of its own, which is faster than calling `step` once per token."""

    def generate(
        self, state: Any, prompt: list[int], limit: int, *, end: int, suppress: list[int], suppress_first: list[int],
        scores: bool = False,
    ) -> list[tuple[list[int], float]]:  # fmt: skip
        """Decode every row of the batch greedily.

        Args:
            state: What `encode` has returned.
            prompt: Tokens that precede the text, the same for every row.
            limit: Maximum number of generated tokens per row.
            end: The end-of-text token. A row stops after it.
            suppress: Tokens that must not be generated.
            suppress_first: Tokens that must not be generated as the first one.
            scores: Whether to compute log probabilities.

        Returns:
            For each row its generated tokens, without the prompt and with `end` unless the row has reached `limit`,
            and the mean of their natural-log probabilities (NaN without `scores`).
        """
        ...

    def forced_logits(self, state: Any, prompt: list[int], tokens: list[int]) -> list[np.ndarray]:
        """Return the logits of one clip under teacher forcing.

        `state` is what `encode` has returned for a batch of one. The list holds float32 logits [1, V]: those after the
        prompt, then those after each of `tokens` except the last, so one array per token that they predict.
        """
        ...


class LoadedRuntime(Runtime, Protocol):
    """A runtime as `RuntimeModule.load` returns it, with the sizes that its own files declare."""

    sizes: ModelSizes


class RuntimeModule(Protocol):
    """The contents of a module `eval/runtimes/NAME_runtime.py`."""

    PRECISIONS: tuple[str, ...]
    """Precisions that the runtime can load, the most exact one first."""

    def files(self, folder: Path, precision: str) -> list[Path]:
        """Return the existing weight files of one precision in a model folder; empty if there are none."""
        ...

    def load(self, folder: Path, precision: str, threads: int) -> LoadedRuntime:
        """Load a model that computes with `threads` threads. Raises UserError if a file is missing or broken."""
        ...
