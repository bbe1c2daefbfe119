"""Stage `student`: make the student as a copy of the teacher, or of a finished student, with fewer layers.

    python -m distill.student recipes/demo/recipe.yaml

The encoder is copied unchanged unless `student.encoder_layers` is set. When layers are cut, maximally spaced ones are
kept, including the first and the last (Shleifer and Rush 2020; Gandhi et al. 2023, arXiv 2311.00430, section 4).
With `student.init: scratch` only the teacher's shape and vocabulary are taken, and the weights are random.
"""

from distill.models.cutting import cut_layers, reinitialise, spaced_layers
from distill.models.model_size import count_parameters_m
from distill.models.saving import save_model
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments


def main() -> None:
    """Load the source model, keep the chosen layers, and save the student with the source's processors."""
    recipe, command = parse_stage_arguments("student")
    with open_stage(recipe, "student", command) as work:
        section = recipe.student
        # 1. The model to cut, and the teacher for comparison.
        source_folder = resolve_model_folder(*section.source(recipe.teacher.model))
        teacher = load_model(resolve_model_folder(recipe.teacher.model))
        source = load_model(source_folder)
        # 2. The layers to keep, and the student made of them.
        config = source.config
        encoder = spaced_layers(config.encoder_layers, section.encoder_layers or config.encoder_layers, "encoder")
        decoder = spaced_layers(config.decoder_layers, section.decoder_layers, "decoder")
        student = cut_layers(source, encoder, decoder)
        if section.init == "scratch":
            student = reinitialise(student, recipe.seed)
        # 3. The model folder.
        new_decoder = len(decoder) < config.decoder_layers or section.init == "scratch"
        save_model(student, work.folder / "model", processors=source_folder, drop_alignment_heads=new_decoder)
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
