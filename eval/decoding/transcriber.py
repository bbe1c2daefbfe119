"""Samples in, text out, over any runtime: log-mel, encoder, greedy decoding, tokenizer. Numpy and tokenizers only.

B batch, F mel bins, T mel frames, L tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.decoding.timestamps import TimestampRules, segments
from eval.runtimes.interface import Generator, Runtime
from eval.runtimes.log_mel import log_mel
from eval.runtimes.model_format import ModelFormat, load_tokenizer, no_speech_token
from recipes.core.errors import UserError


@dataclass(frozen=True)
class Transcript:
    """One clip's greedy result."""

    text: str
    tokens: list[int] = field(repr=False)
    """Generated tokens with the end of text, without the prompt."""
    mean_logprob: float
    """Mean natural-log probability of the tokens; NaN unless asked for."""


class Transcriber:
    """Greedy transcription of clips up to the model's window, in batches."""

    def __init__(self, runtime: Runtime, folder: Path, language: str | None, task: str = "transcribe"):
        self.runtime, self.format = runtime, ModelFormat.load(folder, language, task)
        self.tokenizer = load_tokenizer(folder)

    @classmethod
    def with_runtime(cls, other: "Transcriber", runtime: Runtime) -> "Transcriber":
        """The same format and tokenizer over another runtime."""
        new = cls.__new__(cls)
        new.runtime, new.format, new.tokenizer = runtime, other.format, other.tokenizer
        return new

    @property
    def writes_timestamps(self) -> bool:
        """Whether its vocabulary has any."""
        known: int = self.tokenizer.get_vocab_size()
        return known > self.format.timestamp_begin

    def features(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Log-mel [B, F, T] of clips of samples at 16 kHz."""
        return np.stack([log_mel(clip, self.format.mel_bins, self.format.window_samples) for clip in clips])

    def transcribe(self, clips: Sequence[np.ndarray], **options: Any) -> list[Transcript]:
        """Clips of samples [N] at 16 kHz to transcripts; options as for `decode`."""
        return self.decode(self.features(clips), **options)

    def decode(
        self, mel_BFT: np.ndarray, *, max_tokens: int | None = None, exact_tokens: int | None = None,
        scores: bool = False, timestamps: bool = False, previous: str = "",
    ) -> list[Transcript]:  # fmt: skip
        """Greedy decoding: at most `max_tokens` new tokens; with `exact_tokens` that many whatever the model says.

        `previous` is text said or expected before, which steers spelling; `timestamps` asks for them (`segments`).
        """
        shape, batch, prompt = self.format, len(mel_BFT), self._prompt(timestamps, previous)
        limit = exact_tokens or max_tokens or shape.max_length
        # A static cache may end before the model's own positions do.
        limit = min(limit, min(shape.max_length, getattr(self.runtime, "max_tokens", shape.max_length)) - len(prompt))
        rules = TimestampRules(shape.timestamp_begin, shape.end, shape.no_timestamps) if timestamps else None
        state = self.runtime.encode(mel_BFT)
        if isinstance(self.runtime, Generator):
            suppress = shape.suppress if exact_tokens is None else [*shape.suppress, shape.end]
            rows = self.runtime.generate(
                state, prompt, limit, end=shape.end, suppress=suppress, suppress_first=shape.suppress_first,
                scores=scores,
            )  # fmt: skip
            return [Transcript(self._text(tokens), tokens, logprob) for tokens, logprob in rows]
        tokens_BL = np.tile(np.array(prompt, np.int64), (batch, 1))
        made: list[np.ndarray] = []
        logprobs: list[np.ndarray] = []
        done_B = np.zeros(batch, bool)
        while len(made) < limit and not done_B.all():
            logits_BV, state = self.runtime.step(tokens_BL, state)
            self._suppress(logits_BV, first=not made, keep_on=exact_tokens is not None)
            if rules is not None:
                rules(logits_BV, np.stack(made, axis=1) if made else np.zeros((batch, 0), np.int64))
            next_B = np.where(done_B, shape.end, logits_BV.argmax(axis=1))
            if scores:
                logprobs.append(_logprob(logits_BV, next_B))
            made.append(next_B)
            done_B |= next_B == shape.end
            tokens_BL = next_B[:, None]
        made_BL = np.stack(made, axis=1) if made else np.zeros((batch, 0), np.int64)
        logprob_BL = np.stack(logprobs, axis=1) if logprobs else np.full(made_BL.shape, np.nan)
        return [self._transcript(row.tolist(), logprob) for row, logprob in zip(made_BL, logprob_BL, strict=True)]

    def listen(self, mel_BFT: np.ndarray) -> list[tuple[str | None, float]]:
        """Of each clip the likeliest language (None for an English-only model) and the probability of no speech."""
        start_B1 = np.full((len(mel_BFT), 1), self.format.prompt[0], np.int64)
        logits_BV, _ = self.runtime.step(start_B1, self.runtime.encode(mel_BFT))
        codes, tokens = list(self.format.languages), list(self.format.languages.values())
        silent = no_speech_token(self.tokenizer)
        p_B = np.exp(_logprob(logits_BV, np.full(len(mel_BFT), silent))) if silent else np.zeros(len(mel_BFT))
        best = [codes[int(row.argmax())] if codes else None for row in logits_BV[:, tokens]]
        return list(zip(best, p_B.tolist(), strict=True))

    def segments(self, transcript: Transcript, seconds: float) -> list[tuple[float, float, str]]:
        """Start and end in s, and text, of what stands between timestamps in a clip of `seconds`."""
        found = segments(transcript.tokens, self.format.timestamp_begin, self.format.end, seconds)
        return [(item.start, item.end, self._text(item.tokens)) for item in found]

    def _prompt(self, timestamps: bool, previous: str) -> list[int]:
        prompt = self.format.prompt[:-1] if timestamps else self.format.prompt
        if not previous:
            return prompt
        if self.format.start_of_previous is None:
            raise UserError("previous text: this model's vocabulary has no token for it; leave it out")
        said = self.tokenizer.encode(f" {previous.strip()}", add_special_tokens=False).ids
        # At most half of the decoder's positions, as Whisper was trained.
        return [self.format.start_of_previous, *said[-(self.format.max_length // 2 - 1) :], *prompt]

    def _suppress(self, logits_BV: np.ndarray, *, first: bool, keep_on: bool) -> None:
        logits_BV[:, self.format.suppress] = -np.inf
        if first:
            logits_BV[:, self.format.suppress_first] = -np.inf
        if keep_on:
            logits_BV[:, self.format.end] = -np.inf

    def _transcript(self, tokens: list[int], logprobs: np.ndarray) -> Transcript:
        length = tokens.index(self.format.end) + 1 if self.format.end in tokens else len(tokens)
        tokens = tokens[:length]
        return Transcript(self._text(tokens), tokens, float(logprobs[:length].mean()) if length else float("nan"))

    def _text(self, tokens: list[int]) -> str:
        # In Whisper's vocabularies all special tokens and timestamps stand at or above the end of text.
        text: str = self.tokenizer.decode([token for token in tokens if token < self.format.end])
        return text.strip()


def _logprob(logits_BV: np.ndarray, chosen_B: np.ndarray) -> np.ndarray:
    top_B1 = logits_BV.max(axis=1, keepdims=True)
    total_B = np.log(np.exp(logits_BV - top_B1).sum(axis=1)) + top_B1[:, 0]
    return logits_BV[np.arange(len(chosen_B)), chosen_B] - total_B
