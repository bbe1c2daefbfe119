"""Stage `student`: a shallower copy of the teacher, or of a student that was finished before.

    python -m distill.student recipes/demo/recipe.yaml

The encoder is copied whole unless the recipe cuts it. Where layers are cut, maximally spaced ones are kept, the first
and the last among them (Shleifer and Rush 2020; Gandhi et al. 2023, arXiv 2311.00430, section 4).
With `student.init: scratch` the shape alone is kept, and the weights are random.
"""

from distill.models.cutting import cut_layers, reinitialise, spaced_layers
from distill.models.model_size import count_parameters_m
from distill.models.saving import save_model
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments


def main() -> None:
    """Load what is cut, cut it, carry its processors over."""
    recipe, command = parse_stage_arguments("student")
    with open_stage(recipe, "student", command) as work:
        section = recipe.student
        folder = resolve_model_folder(*section.source(recipe.teacher.model))
        teacher = load_model(resolve_model_folder(recipe.teacher.model))
        whole = load_model(folder)
        config = whole.config
        encoder = spaced_layers(config.encoder_layers, section.encoder_layers or config.encoder_layers, "encoder")
        decoder = spaced_layers(config.decoder_layers, section.decoder_layers, "decoder")
        student = cut_layers(whole, encoder, decoder)
        if section.init == "scratch":
            student = reinitialise(student, recipe.seed)
        changed = len(decoder) < config.decoder_layers or section.init == "scratch"
        save_model(student, work.folder / "model", processors=folder, decoder_layers=decoder if changed else None)
        work.finish(
            metrics={
                "encoder_layers_kept": encoder,
                "decoder_layers_kept": decoder,
                "teacher_parameters_m": count_parameters_m(teacher),
                "student_parameters_m": count_parameters_m(student),
            }
        )


if __name__ == "__main__":
    run_main(main)
