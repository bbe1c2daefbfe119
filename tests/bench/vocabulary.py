"""Measure what a trimmed vocabulary saves in a true-size student: file size and the time of a decoder step.

    python -m tests.bench.vocabulary SPEECH VOCABULARY [--shape tiny] [--tokens 8000]        one JSON line

The student has two decoder layers and random weights. Its vocabulary keeps the tokens of all transcripts outside of
test splits, and the most common other tokens. `spelled` is the share of all transcripts, test splits included, that the
trimmed tokenizer encodes and decodes without loss. Decoder steps of one token, after twenty, are timed in turn in ONNX
Runtime, so that other work on the machine slows both alike.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.compression.context import CompressionContext
from distill.compression.vocabulary_trimming import trim_vocabulary
from distill.exporters.onnx_export import export_onnx
from distill.models.cutting import cut_layers
from distill.models.model_size import count_parameters_m
from distill.models.random_weights import random_model
from distill.models.saving import copy_processors
from eval.runtimes.model_format import load_tokenizer
from eval.runtimes.onnx_runtime import OnnxRuntime
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import run_main
from recipes.core.whisper_shape import WHISPER_SHAPES
from recipes.schema.compress_section import VocabularyOptions
from recipes.schema.export_section import Precision
from tests.bench.interleaved_timing import median_times_ms

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
PAST_TOKENS = list(range(1, 21))
"""Tokens in the cache before the timed step."""


def read_transcripts(folder: Path, without_split: str = "") -> list[str]:
    """Return the transcripts of all utterances below the folder that have one, except those of `without_split`."""
    files = [file for file in sorted(folder.rglob("metadata.jsonl")) if file.parent.name != without_split]
    rows = [json.loads(line) for file in files for line in file.open()]
    return [row["text"] for row in rows if row.get("text")]


def round_trip_share(folder: Path, texts: list[str]) -> float:
    """Return the share of the texts that the folder's tokenizer encodes and decodes without loss."""
    tokenizer = load_tokenizer(folder)
    decoded = [tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    return float(np.mean([a == b for a, b in zip(texts, decoded, strict=True)]))


def next_step(runtime: OnnxRuntime, mel_BFT: np.ndarray) -> Callable[[int], object]:
    """Return a step of one token that always starts from the same cache."""
    _, state = runtime.step(np.array([PAST_TOKENS]), runtime.encode(mel_BFT))
    return lambda _run: runtime.step(np.array([PAST_TOKENS[:1]]), state)


def main() -> None:
    """Export the student with the whole and with the trimmed vocabulary, and compare the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--shape", choices=WHISPER_SHAPES, default="tiny")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts = read_transcripts(args.speech, without_split="test")
    rows = dict[str, Any]()
    with tempfile.TemporaryDirectory() as scratch:
        random_model(WHISPER_SHAPES[args.shape], args.vocabulary, Path(scratch) / "teacher")
        teacher = load_model(Path(scratch) / "teacher")
        whole = cut_layers(teacher, list(range(teacher.config.encoder_layers)), [0, teacher.config.decoder_layers - 1])
        (trimmed := Path(scratch) / "trimmed").mkdir()
        copy_processors(args.vocabulary, trimmed)
        small, _ = trim_vocabulary(
            whole, VocabularyOptions(tokens=args.tokens), CompressionContext([], texts, 1, trimmed)
        )
        models, runtimes = {"whole": whole, "trimmed": small}, dict[tuple[str, Precision], OnnxRuntime]()
        sizes = dict[tuple[str, Precision], float]()
        for name, model in models.items():
            files = export_onnx(model, folder := Path(scratch) / f"onnx-{name}", PRECISIONS)
            runtimes |= {(name, precision): OnnxRuntime(folder, precision, args.threads) for precision in PRECISIONS}
            sizes |= {
                (name, precision): sum(file.stat().st_size for file in files[precision]) / 1e6
                for precision in PRECISIONS
            }
        mel_BFT = np.zeros((1, whole.config.num_mel_bins, 2 * whole.config.max_source_positions), dtype=np.float32)
        calls = {key: next_step(runtime, mel_BFT) for key, runtime in runtimes.items()}
        times, share = (
            median_times_ms(calls, args.runs, "steps"),
            round_trip_share(trimmed, read_transcripts(args.speech)),
        )
    for name, model in models.items():
        rows[name] = {
            "tokens": model.config.vocab_size, "decoder_m": count_parameters_m(model)["decoder"],
            "size_mb": {precision: round(sizes[name, precision], 2) for precision in PRECISIONS},
            "step_p50_ms": {precision: round(times[name, precision][0], 3) for precision in PRECISIONS},
            "step_ratio": {
                precision: round(times[name, precision][0] / times["whole", precision][0], 3)
                for precision in PRECISIONS
            },
        }  # fmt: skip
    print(json.dumps({
        "bench": "vocabulary", "shape": args.shape, "rows": rows, "spelled": share, "runs": args.runs,
        "threads": args.threads,
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
