"""CTranslate2 models (`distill.exporters.ctranslate2_export`); needs only numpy and ctranslate2.

B batch, F mel bins, T mel frames, S encoder positions, L tokens, D width, V vocabulary.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.runtimes.model_format import ModelSizes
from recipes.core.errors import UserError, one_line

COMPUTE_TYPES = {"fp32": "float32", "int8": "int8"}
PRECISIONS = tuple(COMPUTE_TYPES)


def files(folder: Path, precision: str) -> list[Path]:
    """Return the existing weight files."""
    return sorted((folder / f"ctranslate2-{precision}").glob("model.bin"))


def load(folder: Path, precision: str, threads: int) -> "CTranslate2Runtime":
    """Load `folder/ctranslate2-PRECISION/`. Raises UserError if a file is missing or broken."""
    return CTranslate2Runtime(folder, precision, threads)


@dataclass(frozen=True)
class CTranslate2State:
    """Decoding state of one batch. A step returns a new state and does not change its argument."""

    encoder_BSD: Any
    """Encoder output in CTranslate2's array type, which numpy converts."""
    tokens_BL: np.ndarray | None = None
    """All tokens fed so far, the prompt included; None before the prompt."""
    prompt_length: int = 0
    """Number of prompt tokens: those of the first step."""


class CTranslate2Runtime:
    """A CTranslate2 model as a `Generator`."""

    def __init__(self, folder: Path, precision: str, threads: int):
        """Load `folder/ctranslate2-{precision}/`; each operator uses `threads` threads.

        Raises UserError if a file is missing or broken.
        """
        import ctranslate2

        self._folder = folder / f"ctranslate2-{precision}"
        for name in ("model.bin", "config.json", "vocabulary.json"):
            if not (path := self._folder / name).is_file():
                raise UserError(
                    f"{path}: expected a file of a CTranslate2 model, found none; export the model with this precision"
                )
        self._from_array = ctranslate2.StorageView.from_array
        try:
            self._suppress_first = sorted(json.loads((self._folder / "config.json").read_text())["suppress_ids_begin"])
            self._whisper = ctranslate2.models.Whisper(
                str(self._folder), compute_type=COMPUTE_TYPES[precision], intra_threads=threads, inter_threads=1
            )
            vocabulary = json.loads((self._folder / "vocabulary.json").read_text())
            self.sizes = ModelSizes(self._whisper.n_mels, None, len(vocabulary))
        except (
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            MemoryError,
        ) as error:  # its own are RuntimeErrors
            found = one_line(error) or type(error).__name__
            raise UserError(
                f"{self._folder}: expected readable CTranslate2 files, found {found}; run the export stage again"
            ) from error

    def encode(self, mel_BFT: np.ndarray) -> CTranslate2State:
        """See `Runtime.encode`."""
        return CTranslate2State(self._whisper.encode(self._from_array(np.ascontiguousarray(mel_BFT, np.float32))))

    def generate(
        self, state: CTranslate2State, prompt: list[int], limit: int, *, end: int, suppress: list[int],
        suppress_first: list[int], scores: bool = False,
    ) -> list[tuple[list[int], float]]:  # fmt: skip
        """See `Generator.generate`."""
        # CTranslate2 reads the tokens that must not come first from its config.json; they cannot be passed here.
        if suppress_first and sorted(suppress_first) != self._suppress_first:
            raise UserError(
                f"{self._folder / 'config.json'}: expected suppress_ids_begin {sorted(suppress_first)} as in "
                f"generation_config.json, found {self._suppress_first}; run the export stage again"
            )
        results = self._whisper.generate(
            state.encoder_BSD, [prompt] * state.encoder_BSD.shape[0], beam_size=1, length_penalty=0,
            max_length=_max_length(limit, len(prompt)), return_scores=scores, suppress_blank=bool(suppress_first),
            suppress_tokens=suppress,
        )  # fmt: skip
        rows = []
        for result in results:
            tokens = result.sequences_ids[0]  # lacks the end token, although the score includes it
            tokens = [*tokens, end] if len(tokens) < limit else tokens
            rows.append((tokens, result.scores[0] / len(tokens) if scores else float("nan")))
        return rows

    def step(self, tokens_BL: np.ndarray, state: CTranslate2State) -> tuple[np.ndarray, CTranslate2State]:
        """See `Runtime.step`.

        CTranslate2 keeps no cache between calls, so every call starts again at the prompt: use this for a first step,
        not for a loop.
        """
        previous_BL = state.tokens_BL
        all_BL = tokens_BL if previous_BL is None else np.concatenate([previous_BL, tokens_BL], axis=1)
        prompt_length = state.prompt_length or tokens_BL.shape[1]
        logits_BV = self._logits(state, all_BL, prompt_length)[-1]
        return logits_BV, CTranslate2State(state.encoder_BSD, all_BL, prompt_length)

    def forced_logits(self, state: CTranslate2State, prompt: list[int], tokens: list[int]) -> list[np.ndarray]:
        """See `Generator.forced_logits`."""
        return self._logits(state, np.array([[*prompt, *tokens[:-1]]], np.int64), len(prompt))

    def _logits(self, state: CTranslate2State, all_BL: np.ndarray, prompt_length: int) -> list[np.ndarray]:
        """Return the logits [B, V] after the prompt and after each later token of `all_BL`."""
        steps = all_BL.shape[1] - prompt_length + 1
        results = self._whisper.generate(
            state.encoder_BSD, all_BL.tolist(), beam_size=1, return_logits_vocab=True, suppress_blank=False,
            max_length=_max_length(steps, prompt_length), suppress_tokens=[],
        )  # fmt: skip
        return [
            np.stack([np.array(result.logits[0][-steps + step], np.float32) for result in results])
            for step in range(steps)
        ]


def _max_length(tokens: int, prompt_length: int) -> int:
    """Return the option `max_length` with which CTranslate2 generates up to `tokens` tokens.

    It generates min(max_length // 2, max_length - (prompt_length - 1)) tokens, forced ones included.
    """
    return max(2 * tokens, tokens + prompt_length - 1)
