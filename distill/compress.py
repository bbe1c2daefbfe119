"""Stage `compress`: the student made smaller, by the recipe's methods in turn.

    python -m distill.compress recipes/alnum-compressed/recipe.yaml

`compression.json` holds what each method did to each layer. The stage `heal` trains the result.
"""

import tempfile
from pathlib import Path
from typing import Any

from data_prep.labels.quality_checks import kept_labels
from distill.compression.context import CompressionContext, Method
from distill.compression.low_rank import factor_encoder
from distill.compression.pruning import prune_model
from distill.compression.vocabulary_trimming import trim_vocabulary
from distill.compression.window_shortening import shorten_window
from distill.models.model_size import count_parameters_m, encoder_macs_m
from distill.models.saving import copy_processors, save_model
from eval.audio.utterances import read_utterances
from eval.runtimes.torch_runtime import load_model
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError, run_main
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.recipe import Recipe

METHODS: dict[str, Method] = {
    "window": shorten_window,
    "vocabulary": trim_vocabulary,
    "prune": prune_model,
    "low_rank": factor_encoder,
}
"""By the name of their section."""


def main() -> None:
    """Training audio, each method on the result of the one before, the smaller student."""
    recipe, command = parse_stage_arguments("compress")
    if (section := recipe.compress) is None:
        raise UserError("compress: the recipe has no such section; add `compress: {low_rank: {preset: balanced}}`")
    with open_stage(recipe, "compress", command) as work, tempfile.TemporaryDirectory() as processors:
        # 1. The student as it was trained, and what its layers and its tokenizer are looked at with.
        source = student_folder(recipe, before="compress")
        student = load_model(source)
        copy_processors(source, Path(processors))
        material = CompressionContext(*training_clips(recipe), section.clips, Path(processors))
        # 2. The methods, and what each left.
        steps: list[dict[str, Any]] = [_measured("student", student)]
        for name, options in section.methods:
            student, layers = METHODS[name](student, options, material)
            asked = options.model_dump(exclude_none=True)
            steps.append(_measured(name, student) | {"options": asked, "layers": layers})
        # 3. A student like any other, which the trainer can heal and every exporter takes.
        save_model(student, work.folder / "model", processors=Path(processors))
        write_json(work.folder / "compression.json", {"command": command, "steps": steps})
        work.finish(
            counts={"calibration_clips": len(material.calibration(student))},
            metrics={step["name"]: {key: step[key] for key in ("parameters_m", "encoder_macs_m")} for step in steps},
        )


def training_clips(recipe: Recipe) -> tuple[list[list[str]], list[str | None]]:
    """References and text of each training utterance: the label that quality kept, else the source's transcript."""
    labels = {label.id: label.text for label in kept_labels(recipe.root)} if recipe.labels is not None else {}
    found = read_utterances(recipe.root / "corpus", "train")
    return [item.audio for item in found], [labels.get(item.id) or item.text for item in found]


def _measured(name: str, model: Any) -> dict[str, Any]:
    return {"name": name, "parameters_m": count_parameters_m(model), "encoder_macs_m": encoder_macs_m(model)}


if __name__ == "__main__":
    run_main(main)
