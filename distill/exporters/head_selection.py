"""Which heads of a student's cross-attention word times are read from, chosen by measurement.

    python -m distill.alignment_heads RECIPE MODEL        writes them into a model folder; export does so when asked

The teacher's heads do not survive a cut of layers. Training utterances are joined to strings, so that it is known where
the speech of each begins. The student reads the string with its labels as text, each head's picture gives the text a
time, and what differs from the truth is the head's error. The best head comes first; others are added while the error
of their mean falls. The width of the median is chosen along, since it must be shorter than a token: a model that writes
letter by letter wants less than Whisper's 140 ms.

Beginnings alone are counted: a word ends where the next token is written, wherever in the pause between them that is.

H heads, N tokens, S encoder positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from data_prep.labels.label_store import Label
from data_prep.labels.quality_checks import kept_labels
from distill.data.calibration import CalibrationAudio
from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.transcriber import Transcriber
from eval.decoding.word_times import Head, loud_range, read_attention, smooth_attention, split_words, token_starts
from eval.runtimes.model_format import JsonSettings
from eval.runtimes.torch_runtime import TorchRuntime
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError
from recipes.core.whisper_shape import POSITIONS_PER_SECOND
from recipes.schema.recipe import Recipe

PIECES = (2, 8)
"""Fewest and most utterances of a string."""
PAUSE = 0.3
"""Longest silence after each, s; drawn evenly from 0."""
LOST = 0.3
"""An error beyond this counts as this, s: a string on which every head is lost shall not decide between them."""
WIDTHS = (3, 5, 7)
"""Encoder positions of the median; the last is Whisper's own."""
CLIPS = 64
"""Strings, where the recipe does not say."""
RECORD = "stage.json"


@dataclass(frozen=True)
class JoinedClip:
    """Recordings one after the other, and where the words of each are."""

    samples: np.ndarray
    tokens: list[int]
    spans: list[tuple[int, int]]
    """Of each recording the first token of its first word, and the one after its last word."""
    seconds: list[tuple[float, float]]
    """Of each recording where its speech begins and ends: `eval.decoding.word_times.sounding`."""


@dataclass(frozen=True)
class HeadChoice:
    """The heads, and how far their beginnings are from the truth."""

    heads: list[Head]
    width: int
    """Encoder positions of the median."""
    error_ms: float
    """Mean absolute error of the chosen heads together, errors beyond LOST cut to that."""
    each_ms: dict[str, float]
    """Of each head alone, by `layer.head`, at the same width."""
    strings: int
    boundaries: int
    """Beginnings compared."""


def select_alignment_heads(
    recipe: Recipe, model: WhisperForConditionalGeneration, folder: Path, clips: int
) -> HeadChoice:
    """The heads of a model, on so many strings of the recipe's kept training labels; UserError where there are none."""
    if not (recipe.root / "quality" / "quality.parquet").is_file():
        raise UserError(
            f"alignment heads: expected kept labels in {recipe.root}, found none; run `sottovoce run --until quality`"
        )
    transcriber = Transcriber(TorchRuntime(model), folder, recipe.teacher.language, recipe.teacher.task)
    kept = [label for label in kept_labels(recipe.root) if label.split == "train"]
    # Where the label is a guess there is no place in the audio that it belongs to.
    labels = sorted(kept, key=lambda label: -label.plain.mean_logprob)[: len(kept) // 2]
    return choose_heads(transcriber, model, list(joined_clips(labels, transcriber, clips, recipe.seed)))


def joined_clips(labels: Sequence[Label], transcriber: Transcriber, clips: int, seed: int) -> Iterator[JoinedClip]:
    """Strings of one source's labels, speaker by speaker where they are known, that fill at most the model's window."""
    draw, form = np.random.default_rng(seed), transcriber.format
    room = form.window_samples / SAMPLE_RATE
    short = sorted((label for label in labels if label.seconds < room / 2), key=lambda label: label.id)
    mixed = [short[place] for place in draw.permutation(len(short))]
    groups: list[list[Label]] = []
    most, left = 0, 0.0
    for label in sorted(mixed, key=lambda label: (label.source, label.speaker or "")):
        needed = label.seconds + PAUSE
        same = groups and (label.source, label.speaker) == (groups[-1][0].source, groups[-1][0].speaker)
        if not same or len(groups[-1]) == most or needed > left:
            groups.append([])
            most, left = int(draw.integers(PIECES[0], PIECES[1] + 1)), room
        groups[-1].append(label)
        left -= needed
    joined = [group for group in groups if len(group) >= PIECES[0]]
    if not joined:
        raise UserError(
            f"alignment heads: expected kept training labels of less than {room / 2:g} s, two of which fill a window, "
            f"found {len(short)}; set export.alignment_clips=0"
        )
    for group in CalibrationAudio.of(joined, clips):
        clips_N = [read_audio(label.audio) for label in group]
        made = join_recordings(clips_N, [label.text for label in group], transcriber.tokenizer, draw, PAUSE)
        if len(form.prompt) + len(made.tokens) <= form.max_length:
            yield made


def join_recordings(
    recordings: Sequence[np.ndarray],
    texts: Sequence[str],
    tokenizer: Tokenizer,
    draw: np.random.Generator,
    pause: float,
) -> JoinedClip:
    """Recordings [N] at 16 kHz and their texts as one, with a silence of up to `pause` seconds after each."""
    parts: list[np.ndarray] = []
    tokens: list[int] = []
    spans, seconds = [], []
    for samples, text in zip(recordings, texts, strict=True):
        offset = sum(map(len, parts)) / SAMPLE_RATE
        begin, end = loud_range(samples)
        seconds.append((offset + begin, offset + end))
        said = tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids
        words = split_words(tokenizer, said)
        spans.append((len(tokens) + words[0][1], len(tokens) + words[-1][2]))
        tokens += said
        parts += [samples, np.zeros(round(draw.uniform(0, pause) * SAMPLE_RATE), np.float32)]
    return JoinedClip(np.concatenate(parts), tokens, spans, seconds)


def choose_heads(
    transcriber: Transcriber, model: WhisperForConditionalGeneration, strings: Sequence[JoinedClip]
) -> HeadChoice:
    """The best set of heads and width on these strings: see the module."""
    config = model.config
    heads = list(product(range(config.decoder_layers), range(config.decoder_attention_heads)))
    # float16: 40 heads on 64 strings of 100 tokens in 30 s take 0.8 GB.
    attention = [
        read_attention(transcriber, model, one.samples, one.tokens, heads).astype(np.float16)
        for one in tqdm(strings, "alignment heads", unit="string")
    ]
    found = []
    for width in WIDTHS:
        pictures = [smooth_attention(each.astype(np.float32), width).astype(np.float16) for each in attention]
        chosen, error, alone = best_head_set(pictures, strings)
        names = {f"{layer}.{head}": float(each) for (layer, head), each in zip(heads, alone, strict=True)}
        count = sum(len(one.spans) for one in strings)
        found.append(HeadChoice([heads[place] for place in chosen], width, error, names, len(strings), count))
    return min(found, key=lambda choice: choice.error_ms)


def best_head_set(pictures: Sequence[np.ndarray], strings: Sequence[JoinedClip]) -> tuple[list[int], float, np.ndarray]:
    """Of each string's pictures [H, N, S] the best head, then whichever helps the mean the most, while one does.

    Gives the heads' places, their error together, and that of each alone [H], in ms.
    """
    alone_H = _errors(pictures, strings, [[head] for head in range(len(pictures[0]))])
    chosen, best = [int(alone_H.argmin())], float(alone_H.min())
    while left := [head for head in range(len(alone_H)) if head not in chosen]:
        errors = _errors(pictures, strings, [[*chosen, head] for head in left])
        if errors.min() >= best:
            break
        chosen.append(left[int(errors.argmin())])
        best = float(errors.min())
    return chosen, best, alone_H


def _errors(pictures: Sequence[np.ndarray], strings: Sequence[JoinedClip], sets: Sequence[list[int]]) -> np.ndarray:
    """Mean absolute error of the beginnings of each set of heads, ms; at most LOST."""
    found = []
    for picture_HNS, one in zip(pictures, strings, strict=True):
        means_HNS = np.stack([picture_HNS[chosen].mean(axis=0, dtype=np.float32) for chosen in sets])
        starts_HN = token_starts(means_HNS)[:, [first for first, _ in one.spans]] / POSITIONS_PER_SECOND
        found.append(np.minimum(np.abs(starts_HN - [begin for begin, _ in one.seconds]), LOST))
    errors: np.ndarray = 1000 * np.concatenate(found, axis=1).mean(axis=1)
    return errors


def write_heads(folder: Path, choice: HeadChoice) -> None:
    """Heads and width into a model folder's JSON files, where transformers too looks for them."""
    for name, key, value in (
        ("generation_config.json", "alignment_heads", [list(head) for head in choice.heads]),
        ("config.json", "median_filter_width", choice.width),
    ):
        settings: dict[str, Any] = dict(JsonSettings.read(folder / name))
        write_json(folder / name, settings | {key: value})
