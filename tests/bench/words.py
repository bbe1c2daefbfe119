"""Measure word times of teacher and students on digit strings whose word boundaries are known.

    python -m tests.bench.words SPEECH --model FOLDER [--model FOLDER ...]        one JSON line

Recordings of single digits by one speaker are joined to strings of two to eight digits, directly or with silences of 0
to 0.3 s between them. A word begins and ends where its own recording is first and last within 30 dB of its loudest
10 ms. Attention heads are chosen on strings of training recordings (`chosen`) and measured on strings of test
recordings, with the true digits as text. They are compared with the folder's own `alignment_heads` (`own`), with all
heads of the second half of the layers, which other tools use when no heads are known (`last_half`), and with a string
divided evenly among its words (`even`).

`trimmed` leaves out the pauses within a word's time, as `sottovoce transcribe --words` does. Trimming goes by loudness,
as the true times do, and the silences between recordings are zeros, so that the ends of words are found more easily
than in a room.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from distill.exporters.head_selection import (
    MAX_PAUSE_S,
    MEDIAN_WIDTHS,
    UTTERANCES_PER_CLIP,
    JoinedClip,
    choose_heads,
    join_recordings,
)
from eval.audio.audiofolder import read_metadata
from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.transcriber import Transcriber
from eval.decoding.word_times import Head, cross_attention, smooth_attention, token_starts, trim_silence
from eval.runtimes.model_format import JsonSettings
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import run_main
from recipes.core.progress import track
from recipes.core.whisper_shape import POSITIONS_PER_SECOND

NEAR_MS = 100


def digit_strings(folder: Path, transcriber: Transcriber, count: int, pause: float, seed: int) -> Iterator[JoinedClip]:
    """Yield strings of recorded digits, taking the speakers in turn."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for name, row in read_metadata(folder, "digits"):
        rows.setdefault(row["speaker"], []).append((name, row["text"]))
    generator, yielded = np.random.default_rng(seed), 0
    while yielded < count:
        recordings = rows[sorted(rows)[yielded % len(rows)]]
        length = generator.integers(UTTERANCES_PER_CLIP[0], UTTERANCES_PER_CLIP[1] + 1)
        chosen = [recordings[index] for index in generator.choice(len(recordings), length, replace=False)]
        audio = [read_audio(folder / name) for name, _ in chosen]
        string = join_recordings(audio, [text for _, text in chosen], transcriber.tokenizer, generator, pause)
        if len(string.samples) <= transcriber.format.window_samples:
            yielded += 1
            yield string


def boundary_errors_ms(string: JoinedClip, times: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return how much too late each word begins and ends, in ms [W, 2]."""
    return 1000 * (np.array(times) - np.array(string.speech_spans))


def summarize(errors_W2: Sequence[np.ndarray]) -> dict[str, Any]:
    """Summarize the errors of all words [W, 2]: of their starts, their ends, and both."""
    late = np.concatenate(errors_W2)
    parts = {"starts": late[:, 0], "ends": late[:, 1], "both": late.ravel()}
    return {
        name: {
            "median_ms": round(float(np.median(np.abs(values)))), "late_ms": round(float(np.median(values))),
            "near": round(float(np.mean(np.abs(values) <= NEAR_MS)), 3), "count": len(values),
        }
        for name, values in parts.items()
    }  # fmt: skip


def summarize_times(strings: Sequence[JoinedClip], times: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Summarize times as they are read from the attention, and times without the pauses within words."""
    trimmed = [
        [trim_silence(string.samples, *span) for span in spans] for string, spans in zip(strings, times, strict=True)
    ]
    return {
        name: summarize([boundary_errors_ms(string, spans) for string, spans in zip(strings, variant, strict=True)])
        for name, variant in (("as_read", times), ("trimmed", trimmed))
    }


def even_times(string: JoinedClip) -> list[tuple[float, float]]:
    """Divide the string evenly among its words."""
    edges = np.linspace(0, len(string.samples) / SAMPLE_RATE, len(string.token_spans) + 1).tolist()
    return list(pairwise(edges))


def times_by_heads(
    transcriber: Transcriber, string: JoinedClip, heads: Sequence[Head], median_width: int
) -> list[tuple[float, float]]:
    """Read the times of the words from these attention heads, with a median filter of this width."""
    model = transcriber.runtime.model  # type: ignore[attr-defined]
    attention_HNS = cross_attention(transcriber, model, string.samples, string.tokens, heads)
    starts_N = (
        token_starts(smooth_attention(attention_HNS, median_width).mean(axis=0, keepdims=True))[0]
        / POSITIONS_PER_SECOND
    )
    return [(float(starts_N[first]), float(starts_N[stop])) for first, stop in string.token_spans]


def measure(folder: Path, speech: Path, strings: int, train_strings: int) -> dict[str, Any]:
    """Return all figures of one model."""
    model = load_model(folder)
    transcriber = Transcriber(TorchRuntime(model), folder, "en")
    train = list(digit_strings(speech / "train", transcriber, train_strings, MAX_PAUSE_S, seed=1))
    choice = choose_heads(transcriber, model, train)
    layers, count = model.config.decoder_layers, model.config.decoder_attention_heads
    sets: dict[str, tuple[Sequence[Head], int]] = {
        "chosen": (choice.heads, choice.median_width),
        "last_half": (list(product(range(layers // 2, layers), range(count))), MEDIAN_WIDTHS[-1]),
    }
    if own_heads := JsonSettings.read(folder / "generation_config.json").get("alignment_heads"):
        sets["own"] = ([(layer, head) for layer, head in own_heads], model.config.median_filter_width)
    row: dict[str, Any] = {
        "model": str(folder), "heads": choice.heads, "width": choice.median_width,
        "train_ms": round(choice.error_ms, 1),
        "each_ms": {name: round(value) for name, value in choice.error_ms_by_head.items()},
    }  # fmt: skip
    for name, pause in (("joined", 0.0), ("pauses", MAX_PAUSE_S)):
        test = list(digit_strings(speech / "test", transcriber, strings, pause, seed=2))
        row[name] = {
            key: summarize_times(test, [times_by_heads(transcriber, string, *chosen) for string in test])
            for key, chosen in track(sets.items(), name, unit="set of heads")
        }
        row[name]["even"] = summarize_times(test, [even_times(string) for string in test])
    return row


def main() -> None:
    """Measure each model on the same strings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--strings", type=int, default=100)
    parser.add_argument("--train-strings", type=int, default=64)
    args = parser.parse_args()
    rows = [measure(folder, args.speech / "digits", args.strings, args.train_strings) for folder in args.model]
    print(json.dumps({"bench": "words", "strings": args.strings, "near_ms": NEAR_MS, "models": rows}))


if __name__ == "__main__":
    run_main(main)
