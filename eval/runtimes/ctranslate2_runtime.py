"""CTranslate2 over a folder of `distill.exporters.ctranslate2_export`; needs numpy and ctranslate2 alone.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, D width, V vocabulary.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.runtimes.model_format import ModelSizes
from recipes.core.errors import UserError, one_line

COMPUTE = {"fp32": "float32", "int8": "int8"}
PRECISIONS = tuple(COMPUTE)


def files(folder: Path, precision: str) -> list[Path]:
    """The weights."""
    return sorted((folder / f"ctranslate2-{precision}").glob("model.bin"))


def load(folder: Path, precision: str, threads: int) -> "CTranslate2Runtime":
    """See `CTranslate2Runtime`."""
    return CTranslate2Runtime(folder, precision, threads)


@dataclass(frozen=True)
class CTranslate2State:
    """One batch in decoding; a step makes a new one and leaves this as it is."""

    encoder_BSD: Any
    """CTranslate2's own array; numpy reads it."""
    tokens_BL: np.ndarray | None = None
    """All given so far; none before the prompt."""
    prompt: int = 0
    """How many of them came first."""


class CTranslate2Runtime:
    """A model folder behind the `Generator` face."""

    def __init__(self, folder: Path, precision: str, threads: int):
        """Load `folder/ctranslate2-{precision}/`; `threads` work inside one operator.

        Raises UserError for a file that is missing or broken.
        """
        import ctranslate2

        self._folder = folder / f"ctranslate2-{precision}"
        for name in ("model.bin", "config.json", "vocabulary.json"):
            if not (path := self._folder / name).is_file():
                raise UserError(
                    f"{path}: expected CTranslate2's file, found none; run the export stage with this precision"
                )
        self._from_array = ctranslate2.StorageView.from_array
        try:
            self._blank = sorted(json.loads((self._folder / "config.json").read_text())["suppress_ids_begin"])
            self._whisper = ctranslate2.models.Whisper(
                str(self._folder), compute_type=COMPUTE[precision], intra_threads=threads, inter_threads=1
            )
            vocabulary = json.loads((self._folder / "vocabulary.json").read_text())
            self.sizes = ModelSizes(self._whisper.n_mels, None, len(vocabulary))
        except (RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:  # its own are RuntimeErrors
            found = one_line(error) or type(error).__name__
            raise UserError(
                f"{self._folder}: expected readable CTranslate2 files, found {found}; run the export stage again"
            ) from error

    def encode(self, mel_BFT: np.ndarray) -> CTranslate2State:
        """Log-mel float32 [B, F, T] to encoder states."""
        return CTranslate2State(self._whisper.encode(self._from_array(np.ascontiguousarray(mel_BFT, np.float32))))

    def generate(
        self, state: CTranslate2State, prompt: list[int], limit: int, *, end: int, suppress: list[int],
        suppress_first: list[int], scores: bool = False,
    ) -> list[tuple[list[int], float]]:  # fmt: skip
        """See `Generator.generate`."""
        # CTranslate2 takes what may not come first from its config alone.
        if suppress_first and sorted(suppress_first) != self._blank:
            raise UserError(
                f"{self._folder / 'config.json'}: expected suppress_ids_begin {sorted(suppress_first)} as in "
                f"generation_config.json, found {self._blank}; run the export stage again"
            )
        results = self._whisper.generate(
            state.encoder_BSD, [prompt] * state.encoder_BSD.shape[0], beam_size=1, length_penalty=0,
            max_length=_max_length(limit, len(prompt)), return_scores=scores, suppress_blank=bool(suppress_first),
            suppress_tokens=suppress,
        )  # fmt: skip
        made = []
        for result in results:
            tokens = result.sequences_ids[0]  # without the end token, whose score is counted
            tokens = [*tokens, end] if len(tokens) < limit else tokens
            made.append((tokens, result.scores[0] / len(tokens) if scores else float("nan")))
        return made

    def step(self, tokens_BL: np.ndarray, state: CTranslate2State) -> tuple[np.ndarray, CTranslate2State]:
        """Int64 tokens, the prompt first: float32 logits [B, V] of the last, and the new state.

        CTranslate2 keeps no cache between calls, so every call starts at the prompt: for a first step, not for a loop.
        """
        given = state.tokens_BL
        all_BL = tokens_BL if given is None else np.concatenate([given, tokens_BL], axis=1)
        prompt = state.prompt or tokens_BL.shape[1]
        return self._logits(state, all_BL, prompt)[-1], CTranslate2State(state.encoder_BSD, all_BL, prompt)

    def along(self, state: CTranslate2State, prompt: list[int], tokens: list[int]) -> list[np.ndarray]:
        """See `Generator.along`."""
        return self._logits(state, np.array([[*prompt, *tokens[:-1]]], np.int64), len(prompt))

    def _logits(self, state: CTranslate2State, all_BL: np.ndarray, prompt: int) -> list[np.ndarray]:
        """Logits [B, V] after the prompt and after each token that follows it."""
        steps = all_BL.shape[1] - prompt + 1
        results = self._whisper.generate(
            state.encoder_BSD, all_BL.tolist(), beam_size=1, return_logits_vocab=True, suppress_blank=False,
            max_length=_max_length(steps, prompt), suppress_tokens=[],
        )  # fmt: skip
        return [
            np.stack([np.array(result.logits[0][-steps + step], np.float32) for result in results])
            for step in range(steps)
        ]


def _max_length(tokens: int, prompt: int) -> int:
    # CTranslate2 makes min(max_length // 2, max_length - (prompt - 1)) tokens, forced ones included.
    return max(2 * tokens, tokens + prompt - 1)
