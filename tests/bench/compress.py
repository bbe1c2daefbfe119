"""The encoder by low-rank pairs of each preset: size, work, latency and corpus WER, beside LiteASR as published.

    python -m tests.bench.compress SPEECH [--model FOLDER] [--healed FOLDER ...]        one JSON line

`original` is the model itself, `liteasr` the published rank rule (efeslab/LiteASR, src/compress.py: 0.99 of the
variance in attention and 0.999 in MLP layers, multiples of 16, left alone above 0.5 and 0.8 of the width), both and the
presets without healing. All are calibrated on the same clips of AN4's training split and scored on its test split with
corpus WER; differences to the original are paired. Folders given as healed are shown as they are. Encoders take turns
in ONNX Runtime, so that the machine's other work falls on all of them alike.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from distill.calibration import Calibration
from distill.compress.low_rank import low_rank
from distill.export.onnx_export import export_onnx
from distill.student import encoder_macs_m, parameters_m
from eval.audio import read_audio
from eval.metrics import Errors, bootstrap, count_errors, normalizer
from eval.runtimes.onnx import OnnxRuntime
from eval.runtimes.torch import TorchRuntime, load_model
from eval.runtimes.transcriber import Transcriber
from recipes.compression import PRESETS, LowRank
from recipes.sections import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
PUBLISHED = LowRank(attention=0.99, mlp=0.999)
Rows = list[tuple[str, str]]
"""Audio file and reference of each clip."""


def published(rank: int, layer: nn.Linear) -> bool:
    """Whether LiteASR replaces a layer."""
    width = min(layer.in_features, layer.out_features)
    return rank <= (0.5 if layer.in_features == layer.out_features else 0.8) * width


def clips(folder: Path) -> Rows:
    """Of an audio folder."""
    rows = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    return [(str(folder / row["file_name"]), row["text"]) for row in rows]


def variants(
    folder: Path, train: Rows, count: int, healed: Sequence[Path]
) -> dict[str, WhisperForConditionalGeneration]:
    """The models by the name of their row."""
    model = load_model(folder)
    calibration = Calibration.spread([[audio] for audio, _ in train], model.config, count, "bench:")
    made = {"original": model, "liteasr": low_rank(model, PUBLISHED, calibration, published)[0]}
    made |= {name: low_rank(model, LowRank(preset=name), calibration)[0] for name in PRESETS}
    return made | {str(path): load_model(path) for path in healed}


def said(model: WhisperForConditionalGeneration, folder: Path, test: Rows, batch: int = 16) -> list[str]:
    """Text of every clip, normalised by Whisper's basic normaliser."""
    transcriber, normalize = Transcriber(TorchRuntime(model), folder, "en"), normalizer("basic", folder)
    texts: list[str] = []
    for start in tqdm(range(0, len(test), batch), "test", unit="batch"):
        samples = [read_audio(audio) for audio, _ in test[start : start + batch]]
        texts += [normalize(transcript.text) for transcript in transcriber.transcribe(samples)]
    return texts


def heard(model: WhisperForConditionalGeneration, folder: Path, test: Rows) -> Errors:
    """Edits on every clip, texts normalised alike."""
    normalize = normalizer("basic", folder)
    return count_errors([normalize(text) for _, text in test], said(model, folder, test))


def encoder_ms(
    models: dict[str, WhisperForConditionalGeneration], mels: Sequence[np.ndarray], threads: int, runs: int
) -> dict[str, dict[str, float]]:
    """Median time of one window by model and precision, all in turn."""
    with tempfile.TemporaryDirectory() as place:
        sessions: dict[tuple[str, str], OnnxRuntime] = {}
        for name, model in models.items():
            export_onnx(model, Path(place) / name, PRECISIONS)
            sessions |= {(name, each): OnnxRuntime(Path(place) / name, each, threads) for each in PRECISIONS}
        spent: dict[tuple[str, str], list[float]] = {key: [] for key in sessions}
        for run in tqdm(range(-2, runs), "encoders"):
            for key, session in sessions.items():
                started = time.perf_counter()
                session.encode(mels[run % len(mels)])
                if run >= 0:
                    spent[key].append(1e3 * (time.perf_counter() - started))
    return {name: {each: round(float(np.median(spent[name, each])), 2) for each in PRECISIONS} for name in models}


def main() -> None:
    """Compress, score, time; one row a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", type=Path, default=Path("recipes/demo/teacher"))
    parser.add_argument("--healed", type=Path, nargs="*", default=[])
    parser.add_argument("--clips", type=int, default=100, help="for calibration")
    parser.add_argument("--runs", type=int, default=50, help="of each encoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test", type=int, help="score only so many clips")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    test = clips(given.speech / "an4" / "test")[: given.test]
    models = variants(given.model, clips(given.speech / "an4" / "train"), given.clips, given.healed)
    errors = {name: heard(model, given.model, test) for name, model in models.items()}
    config = models["original"].config
    looked = Calibration.spread([[audio] for audio, _ in test], config, 10, "bench:")
    latency = encoder_ms(models, list(looked), given.threads, given.runs)
    first, rows = latency["original"], dict[str, Any]()
    for name, model in models.items():
        intervals = {"wer": bootstrap(errors[name], resamples=1000, seed=0)}
        if name != "original":
            intervals["to_original"] = bootstrap(errors[name], errors["original"], resamples=1000, seed=0)
        parts = parameters_m(model)
        rows[name] = {
            "encoder_m": parts["encoder"], "decoder_m": parts["decoder"], "encoder_macs_m": encoder_macs_m(model),
            **{key: [round(value, 2) for value in asdict(each).values()] for key, each in intervals.items()},
            "encoder_p50_ms": latency[name],
            "encoder_ratio": {each: round(latency[name][each] / first[each], 3) for each in PRECISIONS},
        }  # fmt: skip
    print(json.dumps({
        "bench": "compress", "model": str(given.model), "rows": rows, "test_clips": len(test),
        "words": int(errors["original"].units.sum()), "calibration_clips": given.clips, "threads": given.threads,
        "wer_is": "value, low and high of the 95 % interval",
    }))  # fmt: skip


if __name__ == "__main__":
    main()
