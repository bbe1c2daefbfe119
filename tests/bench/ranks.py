"""Measure whether the time of a true-size encoder falls with its parameters: low-rank pairs of fixed rank.

    python -m tests.bench.ranks SPEECH VOCABULARY [--shape base]        one JSON line

Each linear layer of the encoder is replaced by a low-rank pair whose rank is the given share of the model's width, if
the pair is smaller than the layer. Weights are random: the values do not matter for the time. int8 is calibrated on a
dozen clips of AN4. The convolutions, the matrix products within attention and GELU stay as they are: `linear` is the
share of the multiplications that low-rank pairs can reduce.
"""

import argparse
import json
import tempfile
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

from distill.compression.low_rank import replace_with_pairs, saves_weights
from distill.data.calibration import CalibrationAudio
from distill.models.model_size import count_parameters_m, encoder_macs_m
from distill.models.random_weights import random_model
from eval.runtimes.modeling_sottovoce import low_rank_pair
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import run_main
from recipes.core.whisper_shape import WHISPER_SHAPES
from tests.bench.compress import read_clips
from tests.bench.encoders import export_and_open, time_encoders, with_one_decoder_layer

CALIBRATION_CLIPS = 12


def encoder_linear_layers(model: WhisperForConditionalGeneration) -> dict[str, nn.Linear]:
    """Return the linear layers of the encoder by name."""
    modules = model.named_modules()
    return {name: module for name, module in modules if ".encoder.layers." in name and isinstance(module, nn.Linear)}


def with_random_pairs(model: WhisperForConditionalGeneration, rank: int) -> WhisperForConditionalGeneration:
    """Return a copy with random low-rank pairs of this rank in place of the layers that are larger than their pair."""
    layers = {name: layer for name, layer in encoder_linear_layers(model).items() if saves_weights(rank, layer)}
    return replace_with_pairs(
        model, {name: low_rank_pair(layer.in_features, layer.out_features, rank) for name, layer in layers.items()}
    )


def main() -> None:
    """Time the whole encoder and one of each rank in every system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path, help="folder with a Whisper tokenizer")
    parser.add_argument("--shape", choices=WHISPER_SHAPES, default="base")
    parser.add_argument("--shares", type=Fraction, nargs="*", default=[Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)])
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each encoder")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    audio = [[file] for file, _ in read_clips(args.speech / "an4" / "train")[:CALIBRATION_CLIPS]]
    with tempfile.TemporaryDirectory() as folder:
        source, shape = Path(folder) / "whole", WHISPER_SHAPES[args.shape]
        random_model(shape, args.vocabulary, source)
        models = {"whole": with_one_decoder_layer(load_model(source))}
        for share in args.shares:
            models[f"{share} of the width"] = with_random_pairs(models["whole"], int(share * shape.width))
        mels = list(CalibrationAudio.spread(audio, models["whole"].config, 4, "bench:"))
        encoders = export_and_open(models, dict.fromkeys(models, source), audio, Path(folder), args.threads)
        times = time_encoders(encoders, dict.fromkeys(models, mels), args.runs)
    whole, rows = models["whole"], {}
    for name, model in models.items():
        encoder_m, macs_m = count_parameters_m(model)["encoder"], encoder_macs_m(model)
        rows[name] = {
            "encoder_m": encoder_m, "parameter_ratio": round(encoder_m / count_parameters_m(whole)["encoder"], 3),
            "pairs": len(getattr(model.config, "low_rank", {})), "encoder_macs_m": macs_m,
            "macs_ratio": round(macs_m / encoder_macs_m(whole), 3), **times[name],
        }  # fmt: skip
    weights = sum(layer.weight.numel() for layer in encoder_linear_layers(whole).values())
    print(json.dumps({
        "bench": "ranks", "shape": args.shape, "rows": rows, "runs": args.runs, "threads": args.threads,
        "linear": round(weights * shape.source_positions / 1e6 / encoder_macs_m(whole), 3),
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
