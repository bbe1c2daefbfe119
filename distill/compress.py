"""Stage `compress`: make the trained student smaller by the recipe's methods, one after the other.

    python -m distill.compress recipes/alnum-compressed/recipe.yaml

`compression.json` holds what each method did, by layer. The stage `heal` then trains the smaller student.
"""

import tempfile
from pathlib import Path
from typing import Any

from transformers import WhisperForConditionalGeneration

from distill.compression.context import CompressionContext, Method, training_clips
from distill.compression.low_rank import factor_encoder
from distill.compression.pruning import prune_model
from distill.compression.vocabulary_trimming import trim_vocabulary
from distill.compression.window_shortening import shorten_window
from distill.models.model_size import count_parameters_m, encoder_macs_m
from distill.models.saving import copy_processors, save_model
from eval.runtimes.torch_runtime import load_model
from recipes.core.atomic_files import write_json
from recipes.core.errors import UserError, run_main
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments

METHODS: dict[str, Method] = {
    "window": shorten_window,
    "vocabulary": trim_vocabulary,
    "prune": prune_model,
    "low_rank": factor_encoder,
}
"""By the name of their options in the recipe's compress section."""


def main() -> None:
    """Apply each method to the result of the one before, and save the smaller student."""
    recipe, command = parse_stage_arguments("compress")
    if (section := recipe.compress) is None:
        raise UserError("compress: the recipe has no such section; add `compress: {low_rank: {preset: balanced}}`")
    with open_stage(recipe, "compress", command) as stage, tempfile.TemporaryDirectory() as scratch:
        # 1. Load the student, and copy its tokenizer and feature extractor, which some methods rewrite.
        source, processors = student_folder(recipe, before="compress"), Path(scratch)
        student = load_model(source)
        copy_processors(source, processors)

        # 2. Collect the training audio and texts that the methods measure on.
        audio, texts = training_clips(recipe.root, labelled=recipe.labels is not None)
        context = CompressionContext(audio, texts, section.clips, processors)

        # 3. Apply the methods, and note the size after each.
        steps = [{"name": "student"} | size_figures(student)]
        for name, options in section.methods:
            student, report = METHODS[name](student, options, context)
            changes = {"options": options.model_dump(exclude_none=True), "layers": report}
            steps.append({"name": name} | size_figures(student) | changes)

        # 4. Save an ordinary student, which the trainer can heal and every exporter accepts.
        save_model(student, stage.folder / "model", processors=processors)
        write_json(stage.folder / "compression.json", {"command": command, "steps": steps})
        stage.finish(
            counts={"calibration_clips": len(context.calibration_audio(student))},
            metrics={step["name"]: {key: step[key] for key in ("parameters_m", "encoder_macs_m")} for step in steps},
        )


def size_figures(model: WhisperForConditionalGeneration) -> dict[str, Any]:
    """Return the parameters and the multiply-adds of the encoder, in millions, as compression.json has them."""
    return {"parameters_m": count_parameters_m(model), "encoder_macs_m": encoder_macs_m(model)}


if __name__ == "__main__":
    run_main(main)
