"""Choose the cross-attention heads of a student from which word timestamps are read, by measuring all of them.

The teacher's alignment heads do not survive a cut of layers. Here training utterances are joined to longer clips, in
which it is known where the speech of each utterance starts. The student reads a joined clip with the labels as text,
and the attention of each head gives a start time for every token; the head's error is the difference between the start
times of the utterances and the true ones. The best head is chosen first, and others are added while the error of their
mean attention decreases. The width of the median filter is chosen as well: it must be shorter than a token, so a model
that writes letter by letter needs a narrower one than Whisper's 140 ms.

Only starts are counted: a word's end is read as the place where the next token is written, which may be anywhere in the
pause between the two.

The export stage does this if the recipe sets `export.alignment_clips`; `python -m distill.alignment_heads` does it for
any model folder.

H heads, N tokens, S encoder positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import WhisperForConditionalGeneration

from data_prep.labels.label_store import Label
from data_prep.labels.quality_checks import kept_labels
from distill.data.calibration import evenly_spaced
from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.transcriber import Transcriber
from eval.decoding.word_times import Head, cross_attention, loud_range, smooth_attention, split_words, token_starts
from eval.runtimes.model_format import JsonSettings
from eval.runtimes.torch_runtime import TorchRuntime
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError
from recipes.core.progress import track
from recipes.core.whisper_shape import POSITIONS_PER_SECOND

UTTERANCES_PER_CLIP = (2, 8)
"""Fewest and most utterances that are joined to a clip."""
MAX_PAUSE_S = 0.3
"""Longest silence after each utterance, s; its length is drawn evenly from 0 up to this."""
MAX_ERROR_S = 0.3
"""Larger errors count as this, s, so that a clip on which every head fails does not decide between them."""
MEDIAN_WIDTHS = (3, 5, 7)
"""Widths of the median filter to choose from, in encoder positions; the last is Whisper's own."""
DEFAULT_CLIPS = 64
"""Number of joined clips if the recipe does not set one."""


@dataclass(frozen=True)
class JoinedClip:
    """Recordings joined to one clip, with the place of each."""

    samples: np.ndarray
    """At 16 kHz."""
    tokens: list[int]
    """The texts of all recordings."""
    token_spans: list[tuple[int, int]]
    """For each recording, the first token of its first word and the token after its last word."""
    speech_spans: list[tuple[float, float]]
    """For each recording, the start and end of its speech in s (`eval.decoding.word_times.loud_range`)."""


@dataclass(frozen=True)
class HeadChoice:
    """The chosen heads, and how far the start times that they give are from the true ones."""

    heads: list[Head]
    median_width: int
    """Width of the median filter, in encoder positions."""
    error_ms: float
    """Mean absolute error of the chosen heads together, ms; errors above MAX_ERROR_S count as that."""
    error_ms_by_head: dict[str, float]
    """The same for every head alone at the same width, by `layer.head`."""
    clips: int
    """Number of joined clips."""
    starts: int
    """Number of start times compared."""

    def to_json(self) -> dict[str, Any]:
        """Return the choice as alignment.json has it."""
        return {
            "heads": self.heads, "width": self.median_width, "error_ms": self.error_ms,
            "each_ms": self.error_ms_by_head, "strings": self.clips, "boundaries": self.starts,
        }  # fmt: skip


def select_alignment_heads(
    model: WhisperForConditionalGeneration,
    folder: Path,
    run: Path,
    clips: int,
    *,
    seed: int,
    language: str | None,
    task: str,
) -> HeadChoice:
    """Choose a model's alignment heads on clips that are joined from the kept training labels of a run.

    Args:
        model: The model in memory.
        folder: Its model folder, for the tokenizer and the feature extractor.
        run: Folder of the run with the labels.
        clips: Largest number of joined clips.
        seed: Seed of the clips.
        language: Language code of the prompt.
        task: Task of the prompt.

    Raises UserError if the run has no kept labels.
    """
    if not (run / "quality" / "quality.parquet").is_file():
        raise UserError(
            f"alignment heads: expected kept labels in {run}, found none; run `sottovoce run --until quality`"
        )
    transcriber = Transcriber(TorchRuntime(model), folder, language, task)
    labels = [label for label in kept_labels(run) if label.split == "train"]
    # Use the half that the teacher was most certain of: words that it guessed have no place in the audio.
    certain = sorted(labels, key=lambda label: -label.plain.mean_logprob)[: len(labels) // 2]
    return choose_heads(transcriber, model, list(joined_clips(certain, transcriber, clips, seed)))


def joined_clips(labels: Sequence[Label], transcriber: Transcriber, clips: int, seed: int) -> Iterator[JoinedClip]:
    """Yield at most `clips` clips, each of several utterances of one source and, if known, of one speaker.

    A clip is at most as long as the model's window. Raises UserError if no two utterances are short enough for that.
    """
    draw, model_format = np.random.default_rng(seed), transcriber.format
    window_s = model_format.window_samples / SAMPLE_RATE
    short = sorted((label for label in labels if label.seconds < window_s / 2), key=lambda label: label.id)
    shuffled = [short[index] for index in draw.permutation(len(short))]
    groups: list[list[Label]] = []
    most, left_s = 0, 0.0  # of the last group: utterances that it may have, and seconds that it has room for
    for label in sorted(shuffled, key=lambda label: (label.source, label.speaker or "")):
        needed_s = label.seconds + MAX_PAUSE_S
        same_voice = groups and (label.source, label.speaker) == (groups[-1][0].source, groups[-1][0].speaker)
        if not same_voice or len(groups[-1]) == most or needed_s > left_s:
            groups.append([])
            most, left_s = int(draw.integers(UTTERANCES_PER_CLIP[0], UTTERANCES_PER_CLIP[1] + 1)), window_s
        groups[-1].append(label)
        left_s -= needed_s
    groups = [group for group in groups if len(group) >= UTTERANCES_PER_CLIP[0]]
    if not groups:
        raise UserError(
            f"alignment heads: expected kept training labels of less than {window_s / 2:g} s, two of which fill a "
            f"window, found {len(short)}; set export.alignment_clips=0"
        )
    for group in evenly_spaced(groups, clips):
        recordings = [read_audio(label.audio) for label in group]
        clip = join_recordings(recordings, [label.text for label in group], transcriber.tokenizer, draw, MAX_PAUSE_S)
        if len(model_format.prompt) + len(clip.tokens) <= model_format.max_length:
            yield clip


def join_recordings(
    recordings: Sequence[np.ndarray],
    texts: Sequence[str],
    tokenizer: Tokenizer,
    draw: np.random.Generator,
    max_pause_s: float,
) -> JoinedClip:
    """Join recordings at 16 kHz and their texts, with a silence of up to `max_pause_s` seconds after each."""
    samples: list[np.ndarray] = []
    tokens: list[int] = []
    token_spans, speech_spans = [], []
    for recording, text in zip(recordings, texts, strict=True):
        offset_s = sum(map(len, samples)) / SAMPLE_RATE
        start_s, end_s = loud_range(recording)
        speech_spans.append((offset_s + start_s, offset_s + end_s))
        ids = tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids
        words = split_words(tokenizer, ids)
        token_spans.append((len(tokens) + words[0][1], len(tokens) + words[-1][2]))
        tokens += ids
        samples += [recording, np.zeros(round(draw.uniform(0, max_pause_s) * SAMPLE_RATE), np.float32)]
    return JoinedClip(np.concatenate(samples), tokens, token_spans, speech_spans)


def choose_heads(
    transcriber: Transcriber, model: WhisperForConditionalGeneration, clips: Sequence[JoinedClip]
) -> HeadChoice:
    """Return the set of heads and the width of the median filter with the smallest error on these clips."""
    config = model.config
    heads = list(product(range(config.decoder_layers), range(config.decoder_attention_heads)))
    # float16: 40 heads on 64 clips of 100 tokens in 30 s take 0.8 GB.
    attention = [
        cross_attention(transcriber, model, clip.samples, clip.tokens, heads).astype(np.float16)
        for clip in track(clips, "alignment heads", unit="clip")
    ]
    starts = sum(len(clip.token_spans) for clip in clips)
    choices = []
    for width in MEDIAN_WIDTHS:
        smoothed = [smooth_attention(raw_HNS.astype(np.float32), width).astype(np.float16) for raw_HNS in attention]
        chosen, error_ms, alone_H = best_head_set(smoothed, clips)
        by_head = {f"{layer}.{head}": float(error) for (layer, head), error in zip(heads, alone_H, strict=True)}
        choices.append(HeadChoice([heads[index] for index in chosen], width, error_ms, by_head, len(clips), starts))
    return min(choices, key=lambda choice: choice.error_ms)


def best_head_set(attention: Sequence[np.ndarray], clips: Sequence[JoinedClip]) -> tuple[list[int], float, np.ndarray]:
    """Choose heads greedily: first the best one, then the one whose addition lowers the error most, while any does.

    Args:
        attention: Smoothed attention [H, N, S] of every head, for each clip.
        clips: The clips.

    Returns:
        Indices of the chosen heads, the error of their mean attention in ms, and the error of each head alone [H], ms.
    """
    alone_H = _start_errors(attention, clips, [[head] for head in range(len(attention[0]))])
    chosen, best = [int(alone_H.argmin())], float(alone_H.min())
    while candidates := [head for head in range(len(alone_H)) if head not in chosen]:
        errors = _start_errors(attention, clips, [[*chosen, head] for head in candidates])
        if errors.min() >= best:
            break
        chosen.append(candidates[int(errors.argmin())])
        best = float(errors.min())
    return chosen, best, alone_H


def _start_errors(
    attention: Sequence[np.ndarray], clips: Sequence[JoinedClip], head_sets: Sequence[list[int]]
) -> np.ndarray:
    """Return the mean absolute error of the start times of each set of heads, ms; errors are cut at MAX_ERROR_S."""
    errors = []
    for attention_HNS, clip in zip(attention, clips, strict=True):
        means_HNS = np.stack([attention_HNS[heads].mean(axis=0, dtype=np.float32) for heads in head_sets])
        starts_HN = token_starts(means_HNS)[:, [first for first, _ in clip.token_spans]] / POSITIONS_PER_SECOND
        errors.append(np.minimum(np.abs(starts_HN - [start for start, _ in clip.speech_spans]), MAX_ERROR_S))
    mean_ms: np.ndarray = 1000 * np.concatenate(errors, axis=1).mean(axis=1)
    return mean_ms


def write_heads(folder: Path, choice: HeadChoice) -> None:
    """Write heads and median width into a model folder's JSON files, under the keys that transformers reads too."""
    for name, key, value in (
        ("generation_config.json", "alignment_heads", [list(head) for head in choice.heads]),
        ("config.json", "median_filter_width", choice.median_width),
    ):
        settings: dict[str, Any] = dict(JsonSettings.read(folder / name))
        write_json(folder / name, settings | {key: value})
