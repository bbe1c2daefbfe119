"""Compare low-rank encoders of each preset with LiteASR's published rule: size, work, latency and corpus WER.

    python -m tests.bench.compress SPEECH [--model FOLDER]        one JSON line

A row per model, none of them healed (`tests.bench.heal` measures healing):

    original        the model itself
    liteasr         LiteASR's published rank rule (efeslab/LiteASR, src/compress.py): 0.99 of the variance in attention
                    and 0.999 in MLP layers, ranks in multiples of 16; a layer is left alone if its rank would be above
                    0.5 (attention) or 0.8 (MLP) of the width
    fast, ...       the presets of this project
    magnitude       the unstructured baseline: the smaller half of all weights of the encoder's linear layers is set to
                    zero, which no runtime here makes use of

All are calibrated on the same clips of AN4's training split and scored on its test split with corpus WER; differences
to the original are paired. Encoders are timed in turn (`tests.bench.encoders`). `calibration_memory` is the memory of
low-rank calibration with one minute and with sixty minutes of audio.
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
from transformers import WhisperForConditionalGeneration

from distill.compression.context import CompressionContext
from distill.compression.low_rank import factor_encoder
from distill.data.calibration import CalibrationAudio
from distill.models.model_size import count_parameters_m, encoder_macs_m
from eval.audio.recordings import read_audio
from eval.decoding.long_form import transcribe_long
from eval.decoding.transcriber import Transcriber
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from eval.scoring.error_rates import ErrorCounts, count_errors, normalizer
from eval.scoring.resampling import bootstrap
from recipes.core.errors import run_main
from recipes.core.progress import track
from recipes.schema.compress_section import PRESETS, LowRankOptions
from tests.bench.calibration_memory import measure_calibration_memory
from tests.bench.encoders import export_and_open, time_encoders, with_one_decoder_layer

LITEASR_OPTIONS = LowRankOptions(attention=0.99, mlp=0.999)
Clips = list[tuple[str, str]]
"""Audio file and reference text of each clip."""


def liteasr_replaces(rank: int, layer: nn.Linear) -> bool:
    """Return whether LiteASR replaces a layer that needs this rank."""
    width = min(layer.in_features, layer.out_features)
    return rank <= (0.5 if layer.in_features == layer.out_features else 0.8) * width


def read_clips(folder: Path) -> Clips:
    """Read the clips of an audio folder with a metadata.jsonl."""
    rows = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    return [(str(folder / row["file_name"]), row["text"]) for row in rows]


def prune_by_magnitude(folder: Path, share: float = 0.5) -> WhisperForConditionalGeneration:
    """Load a model and set this share of the weights of its encoder's linear layers to zero, smallest first.

    The threshold is the same for all layers.
    """
    model = load_model(folder)
    layers = [layer for layer in model.model.encoder.modules() if isinstance(layer, nn.Linear)]
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=share)
    for layer in layers:
        prune.remove(layer, "weight")
    return model


def compress_all_ways(folder: Path, train: Clips, count: int) -> dict[str, WhisperForConditionalGeneration]:
    """Return the models by the name of their row, calibrated on `count` of the training clips."""
    model = load_model(folder)
    context = CompressionContext([[audio] for audio, _ in train], [text for _, text in train], count, folder)
    models = {"original": model, "liteasr": factor_encoder(model, LITEASR_OPTIONS, context, liteasr_replaces)[0]}
    models |= {name: factor_encoder(model, LowRankOptions(preset=name), context)[0] for name in PRESETS}
    return models | {"magnitude": prune_by_magnitude(folder)}


def transcribe_clips(model: WhisperForConditionalGeneration, folder: Path, clips: Clips) -> list[str]:
    """Return the text of every clip, normalised by Whisper's basic normaliser.

    A clip longer than the model's window is transcribed in chunks. The tokenizer is that of `folder`.
    """
    transcriber, normalize = Transcriber(TorchRuntime(model), folder, "en"), normalizer("basic", folder)
    return [
        normalize(transcribe_long(transcriber, read_audio(audio), "chunked").text)
        for audio, _ in track(clips, "test", unit="clip")
    ]


def count_model_errors(model: WhisperForConditionalGeneration, folder: Path, clips: Clips) -> ErrorCounts:
    """Transcribe the clips and count the errors; references are normalised like the transcripts."""
    normalize = normalizer("basic", folder)
    return count_errors([normalize(text) for _, text in clips], transcribe_clips(model, folder, clips))


def compare_models(
    models: Mapping[str, WhisperForConditionalGeneration], folders: Mapping[str, Path], train: Clips, test: Clips,
    *, runs: int, threads: int, timed: Collection[str] | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, ErrorCounts]]:  # fmt: skip
    """Return a row per model with size, work, WER and encoder times, and the errors of each model.

    The first model is the original that the others are compared with. Tokenizers and processors are those of the
    models' folders. Only the encoders of the models named in `timed` are timed; None times all.
    """
    errors = {name: count_model_errors(model, folders[name], test) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        timed_models = {
            name: with_one_decoder_layer(model) for name, model in models.items() if timed is None or name in timed
        }
        encoders = export_and_open(timed_models, folders, [[audio] for audio, _ in train], Path(folder), threads)
        mels = {
            name: list(CalibrationAudio.spread([[audio] for audio, _ in test], model.config, 10, "bench:"))
            for name, model in timed_models.items()
        }
        times = time_encoders(encoders, mels, runs)
    original, rows = next(iter(models)), dict[str, dict[str, Any]]()
    for name, model in models.items():
        parameters_m, encoder = count_parameters_m(model), model.model.encoder
        nonzero = sum(int(parameter.count_nonzero()) for parameter in encoder.parameters())
        rows[name] = {
            "encoder_m": parameters_m["encoder"], "decoder_m": parameters_m["decoder"],
            "encoder_macs_m": encoder_macs_m(model), "encoder_nonzero_m": round(nonzero / 1e6, 3),
            "wer": wer_interval(errors[name]),
            **({} if name == original else {"to_original": wer_interval(errors[name], errors[original])}),
            **times.get(name, {}),
        }  # fmt: skip
    return rows, errors


def wer_interval(errors: ErrorCounts, baseline: ErrorCounts | None = None) -> list[float]:
    """Return WER, or its paired difference to `baseline`, in percent: value, low and high of the 95 % interval."""
    return [round(value, 2) for value in asdict(bootstrap(errors, baseline, resamples=1000, seed=0)).values()]


def main() -> None:
    """Compress the model in every way, score and time the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--model", type=Path, default=Path("recipes/demo/teacher"))
    parser.add_argument("--clips", type=int, default=100, help="number of calibration clips")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each encoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test", type=int, help="score only so many clips")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train = read_clips(args.speech / "an4" / "train")
    test = read_clips(args.speech / "an4" / "test")[: args.test]
    memory = measure_calibration_memory(args.speech, args.model, (1, 60))
    models = compress_all_ways(args.model, train, args.clips)
    folders = dict.fromkeys(models, args.model)
    rows, errors = compare_models(models, folders, train, test, runs=args.runs, threads=args.threads)
    print(json.dumps({
        "bench": "compress", "model": str(args.model), "rows": rows, "test_clips": len(test),
        "words": int(errors["original"].units.sum()), "calibration_clips": args.clips, "threads": args.threads,
        "runs": args.runs, "calibration_memory": memory, "wer_is": "value, low and high of the 95 % interval",
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
