"""Whisper's timestamps: the rules for generating them, and the segments that they divide a text into. Numpy only.

B batch, L tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TIMESTAMP_STEP_S = 0.02
"""Seconds between two neighbouring timestamp tokens: one encoder position."""
MAX_INITIAL_TIMESTAMP_S = 1.0
"""Latest first timestamp of a text in seconds (openai/whisper, `max_initial_timestamp`)."""


@dataclass(frozen=True)
class Segment:
    """A span of audio and the text spoken in it."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    tokens: list[int]
    """Text tokens, without timestamps."""


@dataclass(frozen=True)
class TimedWord:
    """A word and its times; punctuation next to a word belongs to it."""

    word: str
    start: float
    """Seconds."""
    end: float
    """Seconds."""


@dataclass(frozen=True)
class TimestampRules:
    """The constraints on timestamp tokens during generation (openai/whisper, decoding.py, `ApplyTimestampRules`)."""

    begin: int
    """The timestamp token of 0.00 s; all tokens from it on are timestamps."""
    end_of_text: int
    no_timestamps: int
    """The token that requests text without timestamps."""

    def __call__(self, logits_BV: np.ndarray, generated_BL: np.ndarray) -> None:
        """Set the logits of all tokens that must not follow the tokens generated so far to -inf, in place."""
        logits_BV[:, self.no_timestamps] = -np.inf
        for logits_V, generated in zip(logits_BV, generated_BL.tolist(), strict=True):
            self._apply_to_row(logits_V, generated)

    def _apply_to_row(self, logits_V: np.ndarray, generated: list[int]) -> None:
        begin, is_time = self.begin, [token >= self.begin for token in generated[-2:]]
        if not generated:  # a text begins with a timestamp
            logits_V[:begin] = -np.inf
            logits_V[begin + round(MAX_INITIAL_TIMESTAMP_S / TIMESTAMP_STEP_S) + 1 :] = -np.inf
            return
        if is_time[-1]:  # timestamps come in pairs, except the first one and one before the end of text
            pair_complete = len(generated) < 2 or is_time[-2]
            if pair_complete:
                logits_V[begin:] = -np.inf
            else:
                logits_V[: self.end_of_text] = -np.inf
        times = [token for token in generated if token >= begin]
        if times:  # timestamps never decrease, and a segment is not empty
            closes_segment = is_time[-1] and len(generated) > 1 and not is_time[-2]
            logits_V[begin : times[-1] + (0 if closes_segment else 1)] = -np.inf
        # If all timestamps together are more probable than any single other token, the next token is a timestamp.
        allowed = logits_V[begin:][np.isfinite(logits_V[begin:])]
        if allowed.size and np.logaddexp.reduce(allowed) > logits_V[:begin].max():
            logits_V[:begin] = -np.inf


def split_segments(tokens: Sequence[int], begin: int, end_of_text: int, seconds: float) -> list[Segment]:
    """Divide the tokens of one clip of `seconds` into segments at their timestamps.

    `begin` is the timestamp token of 0.00 s. Text without a closing timestamp ends with the clip.
    """
    segments: list[Segment] = []
    start, text = 0.0, list[int]()
    for token in tokens:
        if token < end_of_text:
            text.append(token)
        elif token >= begin:
            time = min((token - begin) * TIMESTAMP_STEP_S, seconds)
            if text:
                segments.append(Segment(round(start, 2), round(time, 2), text))
                text = []
            start = time
    if text:
        segments.append(Segment(round(start, 2), round(max(start, seconds), 2), text))
    return segments


def complete_segments(tokens: Sequence[int], begin: int, end_of_text: int) -> tuple[list[int], float | None]:
    """Drop the segment that the end of a window cuts off, from the tokens of a window within a longer recording.

    Two timestamps in a row close one segment and open the next one, which the end of the window cuts off. That segment
    is dropped, to be decoded again in a window that starts where the last complete segment ends (openai/whisper,
    transcribe.py). A text that ends in any other way is kept as a whole.

    Returns the tokens to keep, without the end of text, and the time in seconds at which the next window starts; None
    means that it starts after this window.
    """
    generated = [token for token in tokens if token != end_of_text]
    is_time = [token >= begin for token in generated]
    pairs = [index for index in range(1, len(generated)) if is_time[index - 1] and is_time[index]]
    ends_with_segment = len(generated) > 1 and is_time[-1] and not is_time[-2]
    if not pairs or ends_with_segment or (end := (generated[pairs[-1] - 1] - begin) * TIMESTAMP_STEP_S) <= 0:
        return generated, None
    return generated[: pairs[-1]], end
