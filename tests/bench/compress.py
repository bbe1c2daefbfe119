"""The encoder by low-rank pairs of each preset: size, work, latency and corpus WER, beside LiteASR as published.

    python -m tests.bench.compress SPEECH [--model FOLDER]        one JSON line

`original` is the model itself, `liteasr` the published rank rule (efeslab/LiteASR, src/compress.py: 0.99 of the
variance in attention and 0.999 in MLP layers, multiples of 16, left alone above 0.5 and 0.8 of the width), both and the
presets without healing. `magnitude` is the unstructured baseline: the smaller half of all weights of the encoder's
linear layers is zero, which no runtime here makes use of. All are calibrated on the same clips of AN4's training split
and scored on its test split with corpus WER; differences to the original are paired. Encoders take turns
(`tests.bench.encoders`). `calibration_memory` is that of low rank on one minute and on sixty. What healing makes of
the presets is `tests.bench.heal`.
"""

import argparse
import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from distill.compression.context import CompressionContext
from distill.compression.low_rank import factor_encoder
from distill.data.calibration import CalibrationAudio
from distill.models.model_size import count_parameters_m, encoder_macs_m
from eval.audio.recordings import read_audio
from eval.decoding.long_form import transcribe_long
from eval.decoding.transcriber import Transcriber
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from eval.scoring.error_rates import ErrorCounts, bootstrap, count_errors, normalizer
from recipes.schema.compress_section import PRESETS, LowRankOptions
from tests.bench.calibration_memory import memory_above
from tests.bench.encoders import encoder_times, exported, shallow

PUBLISHED = LowRankOptions(attention=0.99, mlp=0.999)
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


def magnitude(folder: Path, share: float = 0.5) -> WhisperForConditionalGeneration:
    """The model with this share of the weights of its encoder's linear layers zero, the smallest of all layers."""
    model = load_model(folder)
    layers = [layer for layer in model.model.encoder.modules() if isinstance(layer, nn.Linear)]
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=share)
    for layer in layers:
        prune.remove(layer, "weight")
    return model


def variants(folder: Path, train: Rows, count: int) -> dict[str, WhisperForConditionalGeneration]:
    """The models by the name of their row."""
    model = load_model(folder)
    material = CompressionContext([[audio] for audio, _ in train], [text for _, text in train], count, folder)
    made = {"original": model, "liteasr": factor_encoder(model, PUBLISHED, material, published)[0]}
    made |= {name: factor_encoder(model, LowRankOptions(preset=name), material)[0] for name in PRESETS}
    return made | {"magnitude": magnitude(folder)}


def said(model: WhisperForConditionalGeneration, folder: Path, test: Rows) -> list[str]:
    """Text of every clip, normalised by Whisper's basic normaliser; one beyond the model's window is read in chunks."""
    transcriber, normalize = Transcriber(TorchRuntime(model), folder, "en"), normalizer("basic", folder)
    return [
        normalize(transcribe_long(transcriber, read_audio(audio), "chunked").text) for audio, _ in tqdm(test, "test")
    ]


def heard(model: WhisperForConditionalGeneration, folder: Path, test: Rows) -> ErrorCounts:
    """Edits on every clip, texts normalised alike."""
    normalize = normalizer("basic", folder)
    return count_errors([normalize(text) for _, text in test], said(model, folder, test))


def table(
    models: Mapping[str, WhisperForConditionalGeneration], folders: Mapping[str, Path], train: Rows, test: Rows,
    *, runs: int, threads: int, timed: Collection[str] | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, ErrorCounts]]:  # fmt: skip
    """Size, work, WER and encoder times of each model, and its edits; the first is the original.

    Tokenizers and processors are those of the models' folders. Without names in `timed`, all are timed.
    """
    errors = {name: heard(model, folders[name], test) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as place:
        made = {name: shallow(model) for name, model in models.items() if timed is None or name in timed}
        encoders = exported(made, folders, [[audio] for audio, _ in train], place, threads)
        mels = {
            name: list(CalibrationAudio.spread([[audio] for audio, _ in test], model.config, 10, "bench:"))
            for name, model in made.items()
        }
        times = encoder_times(encoders, mels, runs)
    original, rows = next(iter(models)), dict[str, dict[str, Any]]()
    for name, model in models.items():
        parts, encoder = count_parameters_m(model), model.model.encoder
        rows[name] = {
            "encoder_m": parts["encoder"], "decoder_m": parts["decoder"], "encoder_macs_m": encoder_macs_m(model),
            "encoder_nonzero_m": round(sum(int(each.count_nonzero()) for each in encoder.parameters()) / 1e6, 3),
            "wer": interval(errors[name]),
            **({} if name == original else {"to_original": interval(errors[name], errors[original])}),
            **times.get(name, {}),
        }  # fmt: skip
    return rows, errors


def interval(errors: ErrorCounts, than: ErrorCounts | None = None) -> list[float]:
    """WER or, paired, its difference in percent: value, low and high of the 95 % interval."""
    return [round(value, 2) for value in asdict(bootstrap(errors, than, resamples=1000, seed=0)).values()]


def main() -> None:
    """Compress, score, time; one row a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", type=Path, default=Path("recipes/demo/teacher"))
    parser.add_argument("--clips", type=int, default=100, help="for calibration")
    parser.add_argument("--runs", type=int, default=50, help="of each encoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test", type=int, help="score only so many clips")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train = clips(given.speech / "an4" / "train")
    test = clips(given.speech / "an4" / "test")[: given.test]
    memory = memory_above(given.speech, given.model, (1, 60))
    models = variants(given.model, train, given.clips)
    folders = dict.fromkeys(models, given.model)
    rows, errors = table(models, folders, train, test, runs=given.runs, threads=given.threads)
    print(json.dumps({
        "bench": "compress", "model": str(given.model), "rows": rows, "test_clips": len(test),
        "words": int(errors["original"].units.sum()), "calibration_clips": given.clips, "threads": given.threads,
        "runs": given.runs, "calibration_memory": memory, "wer_is": "value, low and high of the 95 % interval",
    }))  # fmt: skip


if __name__ == "__main__":
    main()
