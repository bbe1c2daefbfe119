"""What a trimmed vocabulary saves of a true-size student: its file, and the time of a decoder step.

    python -m tests.bench.vocabulary SPEECH VOCABULARY [--shape tiny] [--tokens 8000]        one JSON line

Two decoder layers and random weights. Kept are the tokens of all transcripts outside of test splits and the most common
others; `spelled` is the share of all transcripts, tests and all, that come back as they were.
Steps of one token, after twenty, take turns in ONNX Runtime, so that the machine's other work falls on both.
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
from recipes.core.whisper_shape import WHISPER_SHAPES
from recipes.schema.compress_section import VocabularyOptions
from recipes.schema.export_section import Precision
from tests.bench.turns import medians_ms

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
CACHED = list(range(1, 21))
"""Tokens that stand before the step."""


def transcripts(folder: Path, without: str = "") -> list[str]:
    """Of every utterance below the folder that has one, splits `without` left out."""
    files = [file for file in sorted(folder.rglob("metadata.jsonl")) if file.parent.name != without]
    rows = [json.loads(line) for file in files for line in file.open()]
    return [row["text"] for row in rows if row.get("text")]


def spelled(folder: Path, texts: list[str]) -> float:
    """Share of the texts that the folder's tokenizer writes and reads without loss."""
    tokenizer = load_tokenizer(folder)
    back = [tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    return float(np.mean([one == other for one, other in zip(texts, back, strict=True)]))


def step(runtime: OnnxRuntime, mel_BFT: np.ndarray) -> Callable[[int], object]:
    """The next step of one token, always from the same cache."""
    _, state = runtime.step(np.array([CACHED]), runtime.encode(mel_BFT))
    return lambda _run: runtime.step(np.array([CACHED[:1]]), state)


def main() -> None:
    """The whole vocabulary beside the trimmed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--shape", choices=WHISPER_SHAPES, default="tiny")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    learnt = transcripts(given.speech, without="test")
    rows = dict[str, Any]()
    with tempfile.TemporaryDirectory() as place:
        random_model(WHISPER_SHAPES[given.shape], given.vocabulary, Path(place) / "teacher")
        teacher = load_model(Path(place) / "teacher")
        whole = cut_layers(teacher, list(range(teacher.config.encoder_layers)), [0, teacher.config.decoder_layers - 1])
        (trimmed := Path(place) / "trimmed").mkdir()
        copy_processors(given.vocabulary, trimmed)
        small, _ = trim_vocabulary(
            whole, VocabularyOptions(tokens=given.tokens), CompressionContext([], learnt, 1, trimmed)
        )
        models, runtimes = {"whole": whole, "trimmed": small}, dict[tuple[str, Precision], OnnxRuntime]()
        sizes = dict[tuple[str, Precision], float]()
        for name, model in models.items():
            files = export_onnx(model, folder := Path(place) / f"onnx-{name}", PRECISIONS)
            runtimes |= {(name, each): OnnxRuntime(folder, each, given.threads) for each in PRECISIONS}
            sizes |= {(name, each): sum(file.stat().st_size for file in files[each]) / 1e6 for each in PRECISIONS}
        mel_BFT = np.zeros((1, whole.config.num_mel_bins, 2 * whole.config.max_source_positions), dtype=np.float32)
        calls = {key: step(runtime, mel_BFT) for key, runtime in runtimes.items()}
        times, share = medians_ms(calls, given.runs, "steps"), spelled(trimmed, transcripts(given.speech))
    for name, model in models.items():
        rows[name] = {
            "tokens": model.config.vocab_size, "decoder_m": count_parameters_m(model)["decoder"],
            "size_mb": {each: round(sizes[name, each], 2) for each in PRECISIONS},
            "step_p50_ms": {each: round(times[name, each][0], 3) for each in PRECISIONS},
            "step_ratio": {each: round(times[name, each][0] / times["whole", each][0], 3) for each in PRECISIONS},
        }  # fmt: skip
    print(json.dumps({
        "bench": "vocabulary", "shape": given.shape, "rows": rows, "spelled": share, "runs": given.runs,
        "threads": given.threads,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
