"""Stage `student`: a shallower copy of the teacher.

    python -m distill.student recipes/demo/recipe.yaml

The encoder is copied whole; of the decoder, maximally spaced layers are kept, the first and the last among them
(Shleifer and Rush 2020; Gandhi et al. 2023, arXiv 2311.00430, section 4).
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import WhisperForConditionalGeneration

from eval.runtimes.torch import load_model
from recipes.errors import UserError, run_main
from recipes.models import PROCESSOR_FILES, model_folder
from recipes.stage import arguments, open_stage, write_json


def main() -> None:
    """Load the teacher, cut, carry its processors over."""
    recipe, command = arguments("student")
    with open_stage(recipe, "student", command) as work:
        folder = model_folder(recipe.teacher.model)
        teacher = load_model(folder)
        layers = spaced_layers(teacher.config.decoder_layers, recipe.student.decoder_layers)
        student = cut_decoder(teacher, layers)
        save_model(student, work.folder / "model", processors=folder, decoder_layers=layers)
        work.finish(
            metrics={
                "decoder_layers_kept": layers,
                "teacher_parameters_m": parameters_m(teacher),
                "student_parameters_m": parameters_m(student),
            }
        )


def spaced_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Indices of the kept layers: evenly spaced from the first to the last; the last alone for one layer."""
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(
            f"student.decoder_layers: expected 1 to {teacher_layers}, the teacher's depth, found {student_layers}"
        )
    if student_layers == 1:
        return [teacher_layers - 1]
    return [int(layer) for layer in np.linspace(0, teacher_layers - 1, student_layers).round()]


def cut_decoder(teacher: WhisperForConditionalGeneration, layers: list[int]) -> WhisperForConditionalGeneration:
    """A copy of the teacher with these decoder layers only."""
    config = copy.deepcopy(teacher.config)
    config.decoder_layers = len(layers)
    student = WhisperForConditionalGeneration(config)
    weights = {}
    for name, tensor in teacher.state_dict().items():
        if name.startswith(prefix := "model.decoder.layers."):
            number, rest = name.removeprefix(prefix).split(".", 1)
            if int(number) not in layers:
                continue
            name = f"{prefix}{layers.index(int(number))}.{rest}"
        weights[name] = tensor
    student.load_state_dict(weights)
    student.tie_weights()
    student.generation_config = teacher.generation_config
    return student.eval()


def save_model(
    model: WhisperForConditionalGeneration,
    folder: Path,
    *,
    processors: Path,
    decoder_layers: list[int] | None = None,
) -> None:
    """Weights in float32 safetensors, config, and the processors' files of another model folder as they are.

    With `decoder_layers`, alignment heads follow their layers; heads of layers that were cut are dropped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for name in PROCESSOR_FILES:
        if (processors / name).is_file():
            shutil.copyfile(processors / name, folder / name)
    if decoder_layers is not None:
        generation: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
        heads = generation.pop("alignment_heads", None) or []
        if moved := [[decoder_layers.index(layer), head] for layer, head in heads if layer in decoder_layers]:
            generation["alignment_heads"] = moved
        write_json(folder / "generation_config.json", generation)


def parameters_m(model: WhisperForConditionalGeneration) -> dict[str, float]:
    """Millions of parameters of encoder and decoder; the tied head counts once, with the decoder."""
    return {
        part: round(sum(tensor.numel() for tensor in getattr(model.model, part).parameters()) / 1e6, 3)
        for part in ("encoder", "decoder")
    }


if __name__ == "__main__":
    run_main(main)
