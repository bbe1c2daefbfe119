"""Stage `student`: a shallower copy of the teacher, or of a student that was finished before.

    python -m distill.student recipes/demo/recipe.yaml

The encoder is copied whole unless the recipe cuts it. Where layers are cut, maximally spaced ones are kept, the first
and the last among them (Shleifer and Rush 2020; Gandhi et al. 2023, arXiv 2311.00430, section 4).
With `student.init: scratch` the shape alone is kept, and the weights are random.
"""

import eval.startup  # noqa: F401

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperForConditionalGeneration

from eval.runtimes.torch import load_model
from recipes.errors import UserError, run_main
from recipes.models import PROCESSOR_FILES, model_folder
from recipes.stage import arguments, open_stage, write_json

_LAYER = re.compile(r"(model\.(?:encoder|decoder)\.layers\.)(\d+)(\..*)")


def main() -> None:
    """Load what is cut, cut it, carry its processors over."""
    recipe, command = arguments("student")
    with open_stage(recipe, "student", command) as work:
        section = recipe.student
        folder = model_folder(*section.source(recipe.teacher.model))
        teacher = load_model(model_folder(recipe.teacher.model))
        whole = load_model(folder)
        config = whole.config
        encoder = spaced_layers(config.encoder_layers, section.encoder_layers or config.encoder_layers, "encoder")
        decoder = spaced_layers(config.decoder_layers, section.decoder_layers, "decoder")
        student = cut(whole, encoder, decoder)
        if section.init == "scratch":
            student = from_scratch(student, recipe.seed)
        changed = len(decoder) < config.decoder_layers or section.init == "scratch"
        save_model(student, work.folder / "model", processors=folder, decoder_layers=decoder if changed else None)
        work.finish(
            metrics={
                "encoder_layers_kept": encoder,
                "decoder_layers_kept": decoder,
                "teacher_parameters_m": parameters_m(teacher),
                "student_parameters_m": parameters_m(student),
            }
        )


def spaced_layers(teacher_layers: int, student_layers: int, part: str) -> list[int]:
    """Indices of the kept layers: evenly spaced from the first to the last; the last alone for one layer."""
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(
            f"student.{part}_layers: expected 1 to {teacher_layers}, the teacher's depth, found {student_layers}"
        )
    if student_layers == 1:
        return [teacher_layers - 1]
    return [int(layer) for layer in np.linspace(0, teacher_layers - 1, student_layers).round()]


def cut(
    teacher: WhisperForConditionalGeneration, encoder: list[int], decoder: list[int]
) -> WhisperForConditionalGeneration:
    """A copy of the teacher with these layers only."""
    config = copy.deepcopy(teacher.config)
    config.encoder_layers = config.num_hidden_layers = len(encoder)
    config.decoder_layers = len(decoder)
    if getattr(config, "low_rank", None):
        config.low_rank = _renumbered(config.low_rank, encoder, decoder)
    return rebuilt(teacher, type(teacher)(config), _renumbered(teacher.state_dict(), encoder, decoder))


def rebuilt(
    source: WhisperForConditionalGeneration, model: WhisperForConditionalGeneration, weights: dict[str, torch.Tensor]
) -> WhisperForConditionalGeneration:
    """The model with these weights and all else that the source says of decoding; in evaluation mode."""
    model.load_state_dict(weights)
    model.tie_weights()
    model.generation_config = source.generation_config
    return model.eval()


def _renumbered(values: dict[str, Any], encoder: list[int], decoder: list[int]) -> dict[str, Any]:
    """By the names in a model of these layers only; values of other layers are dropped."""
    kept = {}
    for name, value in values.items():
        if (found := _LAYER.match(name)) is not None:
            prefix, number, rest = found.groups()
            layers = encoder if ".encoder." in prefix else decoder
            if int(number) not in layers:
                continue
            name = f"{prefix}{layers.index(int(number))}{rest}"
        kept[name] = value
    return kept


def from_scratch(like: WhisperForConditionalGeneration, seed: int) -> WhisperForConditionalGeneration:
    """Random weights in the same shape.

    transformers draws every weight with a standard deviation of 0.02, which leaves the audio in a small model a tenth
    of the sinusoidal positions it is added to: nothing was learnt of it in a thousand steps. He's initialisation of the
    convolutions (He et al. 2015, arXiv 1502.01852) makes both alike.
    """
    torch.manual_seed(seed)
    model = type(like)(like.config)
    for convolution in (model.model.encoder.conv1, model.model.encoder.conv2):
        torch.nn.init.kaiming_normal_(convolution.weight)
    model.generation_config = like.generation_config
    return model


def save_model(
    model: WhisperForConditionalGeneration,
    folder: Path,
    *,
    processors: Path,
    decoder_layers: list[int] | None = None,
) -> None:
    """Weights in float32 safetensors, config, and the processors' files of another model folder as they are.

    With `decoder_layers`, those left of another decoder, its alignment heads are dropped: what they listened to there
    says nothing of them here, where they are trained on without its other layers (`distill.alignment_heads`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    copy_processors(processors, folder)
    if decoder_layers is not None:
        generation: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
        generation.pop("alignment_heads", None)
        write_json(folder / "generation_config.json", generation)


def copy_processors(source: Path, folder: Path) -> None:
    """Tokenizer, feature extractor and generation config of a model folder, as they are."""
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def parameters_m(model: WhisperForConditionalGeneration) -> dict[str, float]:
    """Millions of parameters of encoder and decoder; the tied head counts once, with the decoder."""
    return {
        part: round(sum(tensor.numel() for tensor in getattr(model.model, part).parameters()) / 1e6, 3)
        for part in ("encoder", "decoder")
    }


def encoder_macs_m(model: WhisperForConditionalGeneration) -> float:
    """Millions of multiplications and additions in the encoder's pass over one window, attention's included."""
    config = model.config
    mel_1FT = torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.model.encoder(mel_1FT)
    return round(counter.get_total_flops() / 2e6, 1)  # a pair is two operations


if __name__ == "__main__":
    run_main(main)
