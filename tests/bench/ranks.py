"""Does the time of a true-size encoder fall where its parameters fall? Low-rank pairs of fixed ranks, random weights.

    python -m tests.bench.ranks SPEECH VOCABULARY [--shape base]        one JSON line

Each linear layer of the encoder becomes a pair of the given share of the model's width, where that is smaller. Values
do not matter to time, so the pairs are as torch draws them, and int8 is calibrated on a dozen clips of AN4. The
convolutions, attention's own products and GELU are as they were: `linear` is the share of the multiplications that
pairs can change.
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
from recipes.core.whisper_shape import WHISPER_SHAPES
from tests.bench.compress import clips
from tests.bench.encoders import encoder_times, exported, shallow

CLIPS = 12


def linear_layers(model: WhisperForConditionalGeneration) -> dict[str, nn.Linear]:
    """Of the encoder, by name."""
    named = model.named_modules()
    return {name: each for name, each in named if ".encoder.layers." in name and isinstance(each, nn.Linear)}


def at_rank(model: WhisperForConditionalGeneration, rank: int) -> WhisperForConditionalGeneration:
    """A copy with random pairs of this rank where they are smaller."""
    layers = {name: layer for name, layer in linear_layers(model).items() if saves_weights(rank, layer)}
    return replace_with_pairs(
        model, {name: low_rank_pair(each.in_features, each.out_features, rank) for name, each in layers.items()}
    )


def main() -> None:
    """The whole encoder and one of each rank, in every system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--shape", choices=WHISPER_SHAPES, default="base")
    parser.add_argument("--shares", type=Fraction, nargs="*", default=[Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)])
    parser.add_argument("--runs", type=int, default=20, help="of each encoder")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    audio = [[file] for file, _ in clips(given.speech / "an4" / "train")[:CLIPS]]
    with tempfile.TemporaryDirectory() as place:
        source, shape = Path(place) / "whole", WHISPER_SHAPES[given.shape]
        random_model(shape, given.vocabulary, source)
        models = {"whole": shallow(load_model(source))}
        for share in given.shares:
            models[f"{share} of the width"] = at_rank(models["whole"], int(share * shape.width))
        mels = list(CalibrationAudio.spread(audio, models["whole"].config, 4, "bench:"))
        encoders = exported(models, dict.fromkeys(models, source), audio, place, given.threads)
        times = encoder_times(encoders, dict.fromkeys(models, mels), given.runs)
    whole, rows = models["whole"], {}
    for name, model in models.items():
        encoder_m, macs_m = count_parameters_m(model)["encoder"], encoder_macs_m(model)
        rows[name] = {
            "encoder_m": encoder_m, "parameter_ratio": round(encoder_m / count_parameters_m(whole)["encoder"], 3),
            "pairs": len(getattr(model.config, "low_rank", {})), "encoder_macs_m": macs_m,
            "macs_ratio": round(macs_m / encoder_macs_m(whole), 3), **times[name],
        }  # fmt: skip
    weights = sum(layer.weight.numel() for layer in linear_layers(whole).values())
    print(json.dumps({
        "bench": "ranks", "shape": given.shape, "rows": rows, "runs": given.runs, "threads": given.threads,
        "linear": round(weights * shape.source_positions / 1e6 / encoder_macs_m(whole), 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
