"""Stage `train`: the student learns the teacher's labels and its distribution over tokens.

accelerate launch distill/train.py recipes/demo/recipe.yaml

With `--stage heal` the same is done to the compressed student, by the recipe's section `heal`.
"""

import argparse

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from distill.data.examples import ExampleSampler, previous_labels
from distill.data.training_batches import BatchOrder, Collator, training_batches
from distill.data.vocabulary_map import VocabularyMap
from distill.training.inputs import build_collate, training_labels
from distill.training.teacher_outputs import StoredTeacher
from distill.training.trainer import Trainer
from distill.training.validation import Validation
from eval.audio.utterances import read_utterances
from eval.runtimes.model_format import ModelFormat
from recipes.core.errors import UserError, run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.train_section import TrainSection


def main() -> None:
    """Data, student and teacher, the steps, the best student."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--stage", choices=("train", "heal"), default="train")
    given, rest = parser.parse_known_args()
    stage: str = given.stage
    recipe, command = parse_stage_arguments(stage, rest)
    section: TrainSection | None = getattr(recipe, stage)
    if section is None:
        raise UserError(f"{stage}: the recipe has no such section; add `{stage}: {{}}` for its defaults")
    partial, source = recipe.root / f"{stage}.partial", student_folder(recipe, before=stage)
    accelerator = Accelerator(
        mixed_precision=section.precision, log_with=section.trackers or None,
        project_config=ProjectConfiguration(project_dir=str(partial), logging_dir=str(partial)),
    )  # fmt: skip
    main_process = accelerator.is_main_process
    with open_stage(recipe, stage, command, main=main_process, wait=accelerator.wait_for_everyone) as work:
        # 1. Labels that quality kept, and how they become batches.
        form = ModelFormat.load(source, recipe.teacher.language, recipe.teacher.task)
        words = VocabularyMap.between(resolve_model_folder(recipe.teacher.model), source)
        train, validation, too_long = training_labels(recipe, stage, form, words)
        collate = Collator(form.window_samples, form.end)
        sample = Validation.sample(validation, section.validation_utterances, collate, source, recipe.teacher)
        # 2. Student, teacher and optimiser, where a killed run left them.
        trainer = Trainer(recipe, section, accelerator, work, sample)
        first_step = trainer.resume()
        # 3. The steps.
        collate = build_collate(collate, recipe, section, trainer, train, words)
        order = BatchOrder(
            train, section.batch_size, recipe.seed, section.source_weights, section.bucket_batches,
            section.curriculum_steps, by_seconds=section.full_window < 1,
        )  # fmt: skip
        drawing = ExampleSampler(
            section.timestamps, section.previous_text, form.start_of_previous, form.max_length, recipe.seed
        )
        before = (
            previous_labels(train, read_utterances(recipe.root / "corpus", "train")) if section.previous_text else {}
        )
        batches = training_batches(
            order, drawing, before, collate, first_step=first_step, last_step=section.steps,
            rank=accelerator.process_index, world=accelerator.num_processes, workers=section.workers,
            size=trainer.micro_batch_size(train, drawing, collate),
        )  # fmt: skip
        trainer.run(batches, first_step)
        # 4. The best student becomes the result.
        if main_process:
            StoredTeacher.forget(work.folder / "stored")
            (work.folder / "encoder_states.npy").unlink(missing_ok=True)
            trainer.finish({"train": len(train), "validation": len(validation), "too_long": too_long})


if __name__ == "__main__":
    run_main(main)
