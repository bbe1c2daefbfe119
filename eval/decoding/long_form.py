"""Recordings longer than the model's window, in two ways, over any runtime. Numpy only.

`sequential` is Whisper's own way (Radford et al. 2022, section 3.8): read a window, go on from the last timestamp that
closes a segment. `chunked` reads windows that overlap by a third and joins their texts where most words agree
(transformers' automatic-speech-recognition pipeline); the windows do not depend on each other and go in batches.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from eval.audio.recordings import SAMPLE_RATE
from eval.decoding.repetition import count_repeats
from eval.decoding.subtitles import Cue
from eval.decoding.timestamps import complete_segments
from eval.decoding.transcriber import Transcriber

Mode = Literal["sequential", "chunked"]

OVERLAP = 1 / 3
"""Share of a window that the next one reads again: a sixth at either end, as in transformers' pipeline."""
NO_SPEECH, GUESS = 0.6, -1.0
"""A window is left out where silence is likelier than the first and the text's mean log-probability is below the
second (Whisper's own limits)."""
LOOP = 4
"""A text that says something more often in a row is not passed on as what came before: the loop would go on."""


@dataclass(frozen=True)
class LongTranscript:
    """What was said in a recording."""

    text: str
    cues: list[Cue]
    """Segments with their times in s; none from `chunked`."""
    windows: list[tuple[int, int]]
    """First and last sample + 1 of what was read, in order."""
    tokens: list[list[int]] = field(default_factory=list)
    """Kept of each window, timestamps among them; none from `chunked`."""


def transcribe_long(
    transcriber: Transcriber, samples: np.ndarray, mode: Mode, *, batch_size: int = 1, carry: bool = False,
    previous: str = "", max_tokens: int | None = None,
) -> LongTranscript:  # fmt: skip
    """Samples [N] at 16 kHz of any length to text. `carry` and `previous`: see `sequential`."""
    if mode == "sequential":
        return sequential(transcriber, samples, carry=carry, previous=previous, max_tokens=max_tokens)
    return chunked(transcriber, samples, batch_size=batch_size, previous=previous, max_tokens=max_tokens)


def sequential(
    transcriber: Transcriber, samples: np.ndarray, *, carry: bool = False, previous: str = "",
    max_tokens: int | None = None,
) -> LongTranscript:  # fmt: skip
    """Window after window by the model's timestamps; with `carry` each is told the text before it.

    A model that never writes two timestamps in a row is read window by window.
    """
    form = transcriber.format
    cues: list[Cue] = []
    windows, kept = [], list[list[int]]()
    start, before = 0, previous
    while start < len(samples):
        clip = samples[start : start + form.window_samples]
        mel_BFT = transcriber.features([clip])
        (said,) = transcriber.decode(mel_BFT, scores=True, timestamps=True, previous=before, max_tokens=max_tokens)
        tokens, end = complete_segments(said.tokens, form.timestamp_begin, form.end)
        read = len(clip) if end is None else min(len(clip), round(end * SAMPLE_RATE))
        kept.append([])
        if not (said.mean_logprob < GUESS and transcriber.listen(mel_BFT)[0][1] > NO_SPEECH):
            kept[-1] = tokens
            offset = start / SAMPLE_RATE
            found = transcriber.segments(replace(said, tokens=tokens), read / SAMPLE_RATE)
            cues += [(round(offset + first, 2), round(offset + last, 2), text) for first, last, text in found if text]
            if carry:
                text = " ".join(text for _, _, text in found)
                before = "" if count_repeats(text.split()) > LOOP else f"{before} {text}".strip()
        windows.append((start, start + read))
        start += read
    return LongTranscript(" ".join(text for _, _, text in cues), cues, windows, kept)


def chunked(
    transcriber: Transcriber, samples: np.ndarray, *, batch_size: int = 1, previous: str = "",
    max_tokens: int | None = None,
) -> LongTranscript:  # fmt: skip
    """Overlapping windows, so many at a time."""
    window = transcriber.format.window_samples
    overlap = round(window * OVERLAP)
    starts = range(0, max(1, len(samples) - overlap), window - overlap)
    windows = [(start, min(start + window, len(samples))) for start in starts]
    options: dict[str, Any] = {"max_tokens": max_tokens, "previous": previous}
    texts: list[str] = []
    for first in range(0, len(windows), batch_size):
        clips = [samples[start:end] for start, end in windows[first : first + batch_size]]
        texts += [said.text for said in transcriber.transcribe(clips, **options)]
    return LongTranscript(merge_windows(texts), [], windows)


def merge_windows(texts: Sequence[str], overlap: float = OVERLAP) -> str:
    """The texts of windows that overlap by that share, as one."""
    done, left = list[str](), words_or_characters(texts[0]) if texts else []
    for text in texts[1:]:
        right = words_or_characters(text)
        shared = overlap * (len(left) + len(right)) / 2
        cut_left, cut_right = find_seam([_key(unit) for unit in left], [_key(unit) for unit in right], shared)
        done += left[:cut_left]
        left = right[cut_right:]
    return "".join(done + left).strip()


def find_seam(left: Sequence[str], right: Sequence[str], shared: float) -> tuple[int, int]:
    """How many words to keep of the left text, and from which word on to take the right one.

    The right text's head is laid over the left one's tail by up to twice the words that they are expected to share;
    where the largest share of them agrees, both are cut in the middle. Without two that agree nothing is cut: a word
    may then stand twice, but none is lost. Of two places that agree as well, transformers'
    `_find_longest_common_sequence` takes the longer; here it is the one nearer the expected, so that digits said over
    and over are not laid over one another from end to end.
    """
    best, cut = (0.0, 0.0), (len(left), 0)
    for size in range(1, min(round(2 * shared), len(left) + len(right) - 1) + 1):
        first, last = max(0, len(left) - size), min(len(left), len(left) + len(right) - size)
        start, stop = max(0, size - len(left)), min(len(right), size)
        equal = sum(one == other for one, other in zip(left[first:last], right[start:stop], strict=True))
        if equal > 1 and (agreement := (equal / size, -abs(size - shared))) > best:
            best, cut = agreement, ((first + last) // 2, (start + stop) // 2)
    return cut


_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_UNIT = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)")


def words_or_characters(text: str) -> list[str]:
    """Words with the space before them; in scripts written without spaces, characters."""
    return _UNIT.findall(text if re.match(f"[{_UNSPACED}]", text) else f" {text}")


def _key(unit: str) -> str:
    """What two readings of one word have in common: no case, no punctuation."""
    return re.sub(r"[^\w]", "", unit.casefold()) or unit.strip()
