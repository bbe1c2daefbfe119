"""Whisper's timestamp rules on logits, and the segments that a decoded text falls into. Numpy only.

B batch, L tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEP_S = 0.02
"""Between two timestamp tokens, s: one encoder position."""
LATEST_FIRST_S = 1.0
"""A text begins within its first second (openai/whisper, `max_initial_timestamp`)."""


@dataclass(frozen=True)
class Segment:
    """A stretch of audio and what is said in it."""

    start: float
    """s."""
    end: float
    tokens: list[int]
    """Text tokens."""


@dataclass(frozen=True)
class TimestampRules:
    """What may follow what (openai/whisper, decoding.py, `ApplyTimestampRules`)."""

    begin: int
    """Token of 0.00 s; all tokens from here on are timestamps."""
    end_of_text: int
    no_timestamps: int

    def __call__(self, logits_BV: np.ndarray, made_BL: np.ndarray) -> None:
        """Forbid, in place, what the tokens made so far do not allow."""
        logits_BV[:, self.no_timestamps] = -np.inf
        for logits_V, made in zip(logits_BV, made_BL.tolist(), strict=True):
            self._one(logits_V, made)

    def _one(self, logits_V: np.ndarray, made: list[int]) -> None:
        begin, is_time = self.begin, [token >= self.begin for token in made[-2:]]
        if not made:
            logits_V[:begin] = -np.inf
            logits_V[begin + round(LATEST_FIRST_S / STEP_S) + 1 :] = -np.inf
            return
        if is_time[-1]:  # timestamps come in pairs, but for the first one and before the end of text
            opened = len(made) < 2 or is_time[-2]
            if opened:
                logits_V[begin:] = -np.inf
            else:
                logits_V[: self.end_of_text] = -np.inf
        times = [token for token in made if token >= begin]
        if times:  # time does not run backwards, and a segment is not empty
            opened = is_time[-1] and len(made) > 1 and not is_time[-2]
            logits_V[begin : times[-1] + (0 if opened else 1)] = -np.inf
        # Where all timestamps together are likelier than any one word, it is time for one.
        allowed = logits_V[begin:][np.isfinite(logits_V[begin:])]
        if allowed.size and np.logaddexp.reduce(allowed) > logits_V[:begin].max():
            logits_V[:begin] = -np.inf


def segments(tokens: Sequence[int], begin: int, end_of_text: int, seconds: float) -> list[Segment]:
    """The segments of one decoded clip of `seconds`; text that no timestamp closes ends with the clip."""
    found: list[Segment] = []
    start, text = 0.0, list[int]()
    for token in tokens:
        if token < end_of_text:
            text.append(token)
        elif token >= begin:
            time = min((token - begin) * STEP_S, seconds)
            if text:
                found.append(Segment(round(start, 2), round(time, 2), text))
                text = []
            start = time
    if text:
        found.append(Segment(round(start, 2), round(max(start, seconds), 2), text))
    return found


def complete_segments(tokens: Sequence[int], begin: int, end_of_text: int) -> tuple[list[int], float | None]:
    """Of a window within a longer recording: the tokens to keep, and the second from which to read on.

    Two timestamps in a row close one segment and open the next, which the window's end cuts off: it is dropped and read
    again from the last closed one's end (openai/whisper, transcribe.py). A text that ends otherwise is kept whole, and
    None means that reading goes on after the window.
    """
    said = [token for token in tokens if token != end_of_text]
    is_time = [token >= begin for token in said]
    pairs = [index for index in range(1, len(said)) if is_time[index - 1] and is_time[index]]
    whole = len(said) > 1 and is_time[-1] and not is_time[-2]
    if not pairs or whole or (end := (said[pairs[-1] - 1] - begin) * STEP_S) <= 0:
        return said, None
    return said[: pairs[-1]], end
