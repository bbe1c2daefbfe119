"""Transcribe recordings that are longer than the model's window, in one of two modes, with any runtime. Numpy only.

`sequential` is Whisper's own algorithm (Radford et al. 2022, section 3.8): transcribe a window with timestamps, then
start the next window where the last complete segment ends. `chunked` transcribes windows that overlap by a third and
joins neighbouring texts where most of their words agree, as transformers' automatic-speech-recognition pipeline does.
Its windows do not depend on each other, so they can be decoded in batches.
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
"""Share of a window that overlaps with the next one: a sixth at either end, as in transformers' pipeline."""
NO_SPEECH_THRESHOLD, LOGPROB_THRESHOLD = 0.6, -1.0
"""A window counts as silent, and its text is dropped, if the probability of no speech is above the first and the mean
log-probability of its text below the second (Whisper's own thresholds)."""
MAX_REPEATS = 4
"""A text that repeats something more often in a row is not passed on as previous text, which would prolong the loop."""


@dataclass(frozen=True)
class LongTranscript:
    """The transcript of a recording."""

    text: str
    cues: list[Cue]
    """Segments with their times in the recording; empty in mode `chunked`."""
    windows: list[tuple[int, int]]
    """Start and end sample of every transcribed span, in order."""
    tokens: list[list[int]] = field(default_factory=list)
    """Tokens of every window that were kept, timestamps included; empty in mode `chunked`."""


def transcribe_long(
    transcriber: Transcriber, samples: np.ndarray, mode: Mode, *, batch_size: int = 1, carry: bool = False,
    previous: str = "", max_tokens: int | None = None,
) -> LongTranscript:  # fmt: skip
    """Transcribe samples [N] at 16 kHz of any length.

    Args:
        transcriber: Model and settings.
        samples: The recording.
        mode: `sequential` or `chunked`; see the module.
        batch_size: Number of windows per batch in mode `chunked`.
        carry: In mode `sequential`, pass the text so far to each window as previous text.
        previous: Text that came before the recording, or words to expect; passed to every window.
        max_tokens: Maximum number of generated tokens per window; None for the model's own limit.
    """
    if mode == "sequential":
        return transcribe_sequentially(transcriber, samples, carry=carry, previous=previous, max_tokens=max_tokens)
    return transcribe_in_chunks(transcriber, samples, batch_size=batch_size, previous=previous, max_tokens=max_tokens)


def transcribe_sequentially(
    transcriber: Transcriber, samples: np.ndarray, *, carry: bool = False, previous: str = "",
    max_tokens: int | None = None,
) -> LongTranscript:  # fmt: skip
    """Transcribe window after window, each from the end of the last complete segment. Arguments as `transcribe_long`.

    With a model that never generates two timestamps in a row, the windows follow each other without overlap.
    """
    form = transcriber.format
    cues: list[Cue] = []
    windows, tokens_by_window = [], list[list[int]]()
    start, context = 0, previous
    while start < len(samples):
        clip = samples[start : start + form.window_samples]
        mel_BFT = transcriber.features([clip])
        (transcript,) = transcriber.decode(
            mel_BFT, scores=True, timestamps=True, previous=context, max_tokens=max_tokens
        )
        tokens, resume_at = complete_segments(transcript.tokens, form.timestamp_begin, form.end)
        length = len(clip) if resume_at is None else min(len(clip), round(resume_at * SAMPLE_RATE))
        if _is_silent(transcriber, mel_BFT, transcript.mean_logprob):
            tokens = []
        else:
            offset = start / SAMPLE_RATE
            segments = transcriber.segments(replace(transcript, tokens=tokens), length / SAMPLE_RATE)
            cues += [
                (round(offset + first, 2), round(offset + last, 2), text) for first, last, text in segments if text
            ]
            if carry:
                text = " ".join(text for _, _, text in segments)
                context = "" if count_repeats(text.split()) > MAX_REPEATS else f"{context} {text}".strip()
        tokens_by_window.append(tokens)
        windows.append((start, start + length))
        start += length
    return LongTranscript(" ".join(text for _, _, text in cues), cues, windows, tokens_by_window)


def _is_silent(transcriber: Transcriber, mel_BFT: np.ndarray, mean_logprob: float) -> bool:
    return (
        mean_logprob < LOGPROB_THRESHOLD
        and transcriber.detect_language(mel_BFT)[0].no_speech_prob > NO_SPEECH_THRESHOLD
    )


def transcribe_in_chunks(
    transcriber: Transcriber, samples: np.ndarray, *, batch_size: int = 1, previous: str = "",
    max_tokens: int | None = None,
) -> LongTranscript:  # fmt: skip
    """Transcribe overlapping windows in batches and join their texts. Arguments as `transcribe_long`."""
    window = transcriber.format.window_samples
    overlap = round(window * OVERLAP)
    starts = range(0, max(1, len(samples) - overlap), window - overlap)
    windows = [(start, min(start + window, len(samples))) for start in starts]
    options: dict[str, Any] = {"max_tokens": max_tokens, "previous": previous}
    texts: list[str] = []
    for first in range(0, len(windows), batch_size):
        clips = [samples[start:end] for start, end in windows[first : first + batch_size]]
        texts += [transcript.text for transcript in transcriber.transcribe(clips, **options)]
    return LongTranscript(merge_windows(texts), [], windows)


def merge_windows(texts: Sequence[str], overlap: float = OVERLAP) -> str:
    """Join the texts of windows in which neighbours overlap by the share `overlap`."""
    finished, left = list[str](), words_or_characters(texts[0]) if texts else []
    for text in texts[1:]:
        right = words_or_characters(text)
        shared = overlap * (len(left) + len(right)) / 2
        cut_left, cut_right = find_seam(
            [_match_key(unit) for unit in left], [_match_key(unit) for unit in right], shared
        )
        finished += left[:cut_left]
        left = right[cut_right:]
    return "".join(finished + left).strip()


def find_seam(left: Sequence[str], right: Sequence[str], shared: float) -> tuple[int, int]:
    """Find where to join two overlapping texts, given as words.

    The head of the right text is aligned with the tail of the left one, over every length up to twice the expected
    number `shared` of common words. At the length with the largest share of equal words, both texts are cut in the
    middle of the alignment. If no alignment has two equal words, nothing is cut: a word may then appear twice, but none
    is lost. Among equally good alignments, transformers' `_find_longest_common_sequence` takes the longest; this
    function takes the one closest to `shared`, so that a repeated digit does not make it align the texts over their
    full length.

    Returns the number of words to keep of the left text, and the index of the first word to take from the right one.
    """
    best, cut = (0.0, 0.0), (len(left), 0)
    for size in range(1, min(round(2 * shared), len(left) + len(right) - 1) + 1):
        first, last = max(0, len(left) - size), min(len(left), len(left) + len(right) - size)
        start, stop = max(0, size - len(left)), min(len(right), size)
        equal = sum(mine == theirs for mine, theirs in zip(left[first:last], right[start:stop], strict=True))
        if equal > 1 and (agreement := (equal / size, -abs(size - shared))) > best:
            best, cut = agreement, ((first + last) // 2, (start + stop) // 2)
    return cut


_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_UNIT = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)")


def words_or_characters(text: str) -> list[str]:
    """Split a text into words, each with the space before it; scripts without spaces are split into characters."""
    return _UNIT.findall(text if re.match(f"[{_UNSPACED}]", text) else f" {text}")


def _match_key(unit: str) -> str:
    """Return the word without case and punctuation, in which two transcripts of the same audio often differ."""
    return re.sub(r"[^\w]", "", unit.casefold()) or unit.strip()
