"""Transcribe clips with any runtime: log-mel, encoder, greedy decoding, tokenizer. Needs only numpy and tokenizers.

B batch, F mel bins, T mel frames, L tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.decoding.subtitles import Cue
from eval.decoding.timestamps import TimestampRules, split_segments
from eval.runtimes.interface import Generator, Runtime
from eval.runtimes.log_mel import log_mel
from eval.runtimes.model_format import ModelFormat, load_tokenizer, no_speech_token
from recipes.core.errors import UserError


@dataclass(frozen=True)
class Transcript:
    """The greedily decoded text of one clip."""

    text: str
    tokens: list[int] = field(repr=False)
    """Generated tokens, without the prompt; the end-of-text token is included if the model has generated it."""
    mean_logprob: float
    """Mean natural-log probability of the tokens; NaN if scores were not requested."""


class DetectedLanguage(NamedTuple):
    """What the first decoder step predicts for a clip."""

    language: str | None
    """Code of the most probable language; None for an English-only model."""
    no_speech_prob: float
    """Probability that the clip has no speech; 0 if the vocabulary has no token for it."""


class Transcriber:
    """Greedy transcription of batches of clips that are no longer than the model's window.

    Args:
        runtime: The loaded model.
        folder: Its model folder, for tokenizer and settings.
        language: Language code; None for an English-only model.
        task: `transcribe` or `translate` (to English).

    Raises UserError if the model has no such language or task.
    """

    def __init__(self, runtime: Runtime, folder: Path, language: str | None, task: str = "transcribe"):
        self.runtime, self.format = runtime, ModelFormat.load(folder, language, task)
        self.tokenizer = load_tokenizer(folder)

    def with_runtime(self, runtime: Runtime) -> "Transcriber":
        """Return a transcriber with another runtime and the same settings and tokenizer."""
        new = Transcriber.__new__(Transcriber)
        new.runtime, new.format, new.tokenizer = runtime, self.format, self.tokenizer
        return new

    @property
    def writes_timestamps(self) -> bool:
        """Whether the vocabulary has timestamp tokens."""
        size: int = self.tokenizer.get_vocab_size()
        return size > self.format.timestamp_begin

    def features(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Return the log-mel [B, F, T] of clips of samples [N] at 16 kHz."""
        return np.stack([log_mel(clip, self.format.mel_bins, self.format.window_samples) for clip in clips])

    def transcribe(self, clips: Sequence[np.ndarray], **options: Any) -> list[Transcript]:
        """Transcribe clips of samples [N] at 16 kHz as one batch; `options` are those of `decode`."""
        return self.decode(self.features(clips), **options)

    def decode(
        self, mel_BFT: np.ndarray, *, max_tokens: int | None = None, exact_tokens: int | None = None,
        scores: bool = False, timestamps: bool = False, previous: str = "",
    ) -> list[Transcript]:  # fmt: skip
        """Decode log-mel features [B, F, T] greedily.

        Args:
            mel_BFT: Features as `features` returns them.
            max_tokens: Maximum number of generated tokens; None for the model's own limit.
            exact_tokens: Generate exactly this many tokens and never the end of text, for measurements.
            scores: Whether to compute `Transcript.mean_logprob`.
            timestamps: Whether to generate timestamp tokens, for `segments`.
            previous: Text that came before, or words to expect, which steers vocabulary and spelling.

        Raises UserError if `previous` is given and the model's vocabulary has no token for it.
        """
        form, prompt = self.format, self._prompt(timestamps, previous)
        limit = exact_tokens or max_tokens or form.max_length
        # A runtime's cache may be shorter than the model's maximum length.
        limit = min(limit, min(form.max_length, getattr(self.runtime, "max_tokens", form.max_length)) - len(prompt))
        if isinstance(self.runtime, Generator):
            suppress = form.suppress if exact_tokens is None else [*form.suppress, form.end]
            rows = self.runtime.generate(
                self.runtime.encode(mel_BFT), prompt, limit, end=form.end, suppress=suppress,
                suppress_first=form.suppress_first, scores=scores,
            )  # fmt: skip
            return [Transcript(self._text(tokens), tokens, logprob) for tokens, logprob in rows]
        rules = TimestampRules(form.timestamp_begin, form.end, form.no_timestamps) if timestamps else None
        return self._decode_stepwise(mel_BFT, prompt, limit, rules, scores=scores, forbid_end=exact_tokens is not None)

    def _decode_stepwise(
        self, mel_BFT: np.ndarray, prompt: list[int], limit: int, rules: TimestampRules | None, *, scores: bool,
        forbid_end: bool,
    ) -> list[Transcript]:  # fmt: skip
        """Decode with one call of the runtime's `step` per token."""
        batch, end = len(mel_BFT), self.format.end
        state = self.runtime.encode(mel_BFT)
        tokens_BL = np.tile(np.array(prompt, np.int64), (batch, 1))
        generated: list[np.ndarray] = []
        logprobs: list[np.ndarray] = []
        done_B = np.zeros(batch, bool)
        while len(generated) < limit and not done_B.all():
            logits_BV, state = self.runtime.step(tokens_BL, state)
            self._suppress(logits_BV, first=not generated, forbid_end=forbid_end)
            if rules is not None:
                rules(logits_BV, _columns(generated, batch))
            next_B = np.where(done_B, end, logits_BV.argmax(axis=1))
            if scores:
                logprobs.append(_logprob(logits_BV, next_B))
            generated.append(next_B)
            done_B |= next_B == end
            tokens_BL = next_B[:, None]
        generated_BL = _columns(generated, batch)
        logprob_BL = np.stack(logprobs, axis=1) if logprobs else np.full(generated_BL.shape, np.nan)
        return [self._transcript(row.tolist(), logprob) for row, logprob in zip(generated_BL, logprob_BL, strict=True)]

    def detect_language(self, mel_BFT: np.ndarray) -> list[DetectedLanguage]:
        """Return for each clip its most probable language and the probability that it has no speech."""
        start_B1 = np.full((len(mel_BFT), 1), self.format.prompt[0], np.int64)
        logits_BV, _ = self.runtime.step(start_B1, self.runtime.encode(mel_BFT))
        codes, tokens = list(self.format.languages), list(self.format.languages.values())
        no_speech = no_speech_token(self.tokenizer)
        probability_B = (
            np.exp(_logprob(logits_BV, np.full(len(mel_BFT), no_speech))) if no_speech else np.zeros(len(mel_BFT))
        )
        languages = [codes[int(row.argmax())] if codes else None for row in logits_BV[:, tokens]]
        return [DetectedLanguage(*row) for row in zip(languages, probability_B.tolist(), strict=True)]

    def segments(self, transcript: Transcript, seconds: float) -> list[Cue]:
        """Return start and end in seconds and text of each segment of a clip of `seconds`, by its timestamps."""
        segments = split_segments(transcript.tokens, self.format.timestamp_begin, self.format.end, seconds)
        return [(segment.start, segment.end, self._text(segment.tokens)) for segment in segments]

    def _prompt(self, timestamps: bool, previous: str) -> list[int]:
        prompt = self.format.prompt[:-1] if timestamps else self.format.prompt
        if not previous:
            return prompt
        if self.format.start_of_previous is None:
            raise UserError(
                "previous text: expected a token for it in this model's vocabulary, found none; leave it out"
            )
        previous_tokens = self.tokenizer.encode(f" {previous.strip()}", add_special_tokens=False).ids
        # Whisper was trained with previous text in at most half of the decoder's positions.
        return [self.format.start_of_previous, *previous_tokens[-(self.format.max_length // 2 - 1) :], *prompt]

    def _suppress(self, logits_BV: np.ndarray, *, first: bool, forbid_end: bool) -> None:
        logits_BV[:, self.format.suppress] = -np.inf
        if first:
            logits_BV[:, self.format.suppress_first] = -np.inf
        if forbid_end:
            logits_BV[:, self.format.end] = -np.inf

    def _transcript(self, tokens: list[int], logprobs: np.ndarray) -> Transcript:
        length = tokens.index(self.format.end) + 1 if self.format.end in tokens else len(tokens)
        tokens = tokens[:length]
        return Transcript(self._text(tokens), tokens, float(logprobs[:length].mean()) if length else float("nan"))

    def _text(self, tokens: list[int]) -> str:
        # In Whisper's vocabularies every special token and timestamp has an id of at least that of the end of text.
        text: str = self.tokenizer.decode([token for token in tokens if token < self.format.end])
        return text.strip()


def _columns(tokens: list[np.ndarray], batch: int) -> np.ndarray:
    """Join the tokens [B] of successive steps to [B, L]."""
    return np.stack(tokens, axis=1) if tokens else np.zeros((batch, 0), np.int64)


def _logprob(logits_BV: np.ndarray, tokens_B: np.ndarray) -> np.ndarray:
    """Return the natural-log probability [B] of one token per row."""
    top_B1 = logits_BV.max(axis=1, keepdims=True)
    log_sum_B = np.log(np.exp(logits_BV - top_B1).sum(axis=1)) + top_B1[:, 0]
    return logits_BV[np.arange(len(tokens_B)), tokens_B] - log_sum_B
