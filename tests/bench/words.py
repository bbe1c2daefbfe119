"""Word times on digit strings whose word boundaries are known, of teacher and students.

    python -m tests.bench.words SPEECH --model FOLDER [--model FOLDER ...]        one JSON line

Single digits of one speaker are joined to strings of two to eight, directly and with silences of 0 to 0.3 s. A word
begins and ends where its own recording is first and last within 30 dB of its loudest 10 ms. Heads are chosen on
strings of training recordings; figures are of strings of test recordings, with the digits that were said as text.
Beside them: the folder's own `alignment_heads`, all heads of the last half of the layers as other tools take them where
none are known, and the string divided evenly among its words. `trimmed` is without the pauses within a word's time, as
`sottovoce transcribe --words` gives it; it goes by loudness, as the truth does, and silences between recordings are
zeros, so that their ends are found more easily than in a room.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from distill.exporters.head_selection import PAUSE, PIECES, WIDTHS, JoinedClip, choose_heads, join_recordings
from eval.audio.audiofolder import read_metadata
from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.transcriber import Transcriber
from eval.decoding.word_times import Head, read_attention, smooth_attention, token_starts, trim_silence
from eval.runtimes.model_format import JsonSettings
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.whisper_shape import POSITIONS_PER_SECOND

NEAR_MS = 100


def digit_strings(folder: Path, transcriber: Transcriber, count: int, pause: float, seed: int) -> Iterator[JoinedClip]:
    """Strings of single recordings, the speakers in turn."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for name, row in read_metadata(folder, "digits"):
        rows.setdefault(row["speaker"], []).append((name, row["text"]))
    draw, made = np.random.default_rng(seed), 0
    while made < count:
        own = rows[sorted(rows)[made % len(rows)]]
        chosen = [own[place] for place in draw.choice(len(own), draw.integers(PIECES[0], PIECES[1] + 1), replace=False)]
        audio = [read_audio(folder / name) for name, _ in chosen]
        string = join_recordings(audio, [text for _, text in chosen], transcriber.tokenizer, draw, pause)
        if len(string.samples) <= transcriber.format.window_samples:
            made += 1
            yield string


def errors(string: JoinedClip, times: Sequence[tuple[float, float]]) -> np.ndarray:
    """Of each word how much later than in truth it begins and ends, ms [W, 2]."""
    return 1000 * (np.array(times) - np.array(string.seconds))


def figures(found: Sequence[np.ndarray]) -> dict[str, Any]:
    """Of all words [W, 2]: starts, ends and both together."""
    late = np.concatenate(found)
    parts = {"starts": late[:, 0], "ends": late[:, 1], "both": late.ravel()}
    return {
        name: {
            "median_ms": round(float(np.median(np.abs(values)))), "late_ms": round(float(np.median(values))),
            "near": round(float(np.mean(np.abs(values) <= NEAR_MS)), 3), "count": len(values),
        }
        for name, values in parts.items()
    }  # fmt: skip


def both_ways(strings: Sequence[JoinedClip], times: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Figures of times as they are, and of words without the pauses within their time."""
    shorter = [[trim_silence(one.samples, *time) for time in each] for one, each in zip(strings, times, strict=True)]
    return {
        name: figures([errors(one, each) for one, each in zip(strings, kind, strict=True)])
        for name, kind in (("as_read", times), ("trimmed", shorter))
    }


def evenly(string: JoinedClip) -> list[tuple[float, float]]:
    """The string divided evenly."""
    edges = np.linspace(0, len(string.samples) / SAMPLE_RATE, len(string.spans) + 1).tolist()
    return list(pairwise(edges))


def by_heads(transcriber: Transcriber, one: JoinedClip, heads: Sequence[Head], width: int) -> list[tuple[float, float]]:
    """Times by these heads."""
    model = transcriber.runtime.model  # type: ignore[attr-defined]
    attention_HNS = read_attention(transcriber, model, one.samples, one.tokens, heads)
    starts_N = (
        token_starts(smooth_attention(attention_HNS, width).mean(axis=0, keepdims=True))[0] / POSITIONS_PER_SECOND
    )
    return [(float(starts_N[first]), float(starts_N[stop])) for first, stop in one.spans]


def measured(folder: Path, speech: Path, given: argparse.Namespace) -> dict[str, Any]:
    """All rows of one model."""
    model = load_model(folder)
    transcriber = Transcriber(TorchRuntime(model), folder, "en")
    train = list(digit_strings(speech / "train", transcriber, given.train_strings, PAUSE, seed=1))
    choice = choose_heads(transcriber, model, train)
    layers, count = model.config.decoder_layers, model.config.decoder_attention_heads
    sets: dict[str, tuple[Sequence[Head], int]] = {
        "chosen": (choice.heads, choice.width),
        "last_half": (list(product(range(layers // 2, layers), range(count))), WIDTHS[-1]),
    }
    if own := JsonSettings.read(folder / "generation_config.json").get("alignment_heads"):
        sets["own"] = ([(layer, head) for layer, head in own], model.config.median_filter_width)
    row: dict[str, Any] = {
        "model": str(folder), "heads": choice.heads, "width": choice.width, "train_ms": round(choice.error_ms, 1),
        "each_ms": {name: round(value) for name, value in choice.each_ms.items()},
    }  # fmt: skip
    for name, pause in (("joined", 0.0), ("pauses", PAUSE)):
        test = list(digit_strings(speech / "test", transcriber, given.strings, pause, seed=2))
        row[name] = {
            key: both_ways(test, [by_heads(transcriber, one, *each) for one in test])
            for key, each in tqdm(sets.items(), name)
        }
        row[name]["even"] = both_ways(test, [evenly(one) for one in test])
    return row


def main() -> None:
    """Each model in turn, on the same strings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--strings", type=int, default=100)
    parser.add_argument("--train-strings", type=int, default=64)
    given = parser.parse_args()
    rows = [measured(folder, given.speech / "digits", given) for folder in given.model]
    print(json.dumps({"bench": "words", "strings": given.strings, "near_ms": NEAR_MS, "models": rows}))


if __name__ == "__main__":
    main()
