"""Stage `train`: distil the teacher into the student.

    accelerate launch distill/train.py recipes/demo/recipe.yaml

The student learns the pseudo-labels and, at each of their tokens, the teacher's distribution over the vocabulary
(`distill.losses.distillation_loss`). With `--stage heal` the compressed student is trained in the same way, by the
recipe's section `heal`.
"""

import argparse

from data_prep.audio.augmentation import Augmentation
from distill.data.batch_order import BatchOrder
from distill.data.examples import ExampleSampler, previous_labels
from distill.data.training_batches import Collator, training_batches
from distill.data.vocabulary_map import VocabularyMap
from distill.training.assembly import build_accelerator, build_training_setup
from distill.training.inputs import build_collator, remove_caches, training_labels
from distill.training.micro_batching import choose_micro_batch_size
from distill.training.trainer import Trainer
from distill.training.validation import Validator
from eval.audio.utterances import read_utterances
from eval.runtimes.model_format import ModelFormat
from recipes.core.errors import UserError, run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.flow import student_folder
from recipes.engine.stage_folder import open_stage, parse_stage_arguments
from recipes.schema.recipe import Recipe
from recipes.schema.train_section import TrainSection


def main() -> None:
    """Train the student on the labels and keep the one that validates best."""
    stage, recipe, section, command = _parse_arguments()
    accelerator = build_accelerator(section, recipe.root / f"{stage}.partial")
    rank, world, main_process = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    with open_stage(recipe, stage, command, main=main_process, wait=accelerator.wait_for_everyone) as work:
        student, teacher = student_folder(recipe, before=stage), resolve_model_folder(recipe.teacher.model)
        model_format = ModelFormat.load(student, recipe.teacher.language, recipe.teacher.task)
        # 1. Labels: those that the quality stage kept, in the student's tokens.
        vocabulary = VocabularyMap.between(teacher, student)
        labels = training_labels(recipe.root, stage, model_format.window_samples, vocabulary)
        # 2. Student and teacher, as they were cut or where an interrupted run left them.
        augmentation = Augmentation.from_options(section.augment, recipe.seed) if section.augment else None
        setup = build_training_setup(
            section, accelerator, student, teacher, vocabulary=vocabulary, augmentation=augmentation, seed=recipe.seed
        )
        collator = Collator(model_format.window_samples, model_format.end)
        validator = Validator.sample(
            labels.validation, section.validation_utterances, collator, student, recipe.teacher
        )  # fmt: skip
        trainer = Trainer(
            section, accelerator, setup, validator, folder=work.folder, student_folder=student, seed=recipe.seed
        )
        first_step = trainer.resume()
        # 3. Data order: which labels each step sees, in which form, with which teacher outputs.
        collator = build_collator(
            collator, section, accelerator, setup, labels=labels.train, labels_folder=recipe.root / "labels",
            folder=work.folder, augmentation=augmentation, vocabulary=vocabulary,
        )  # fmt: skip
        order = BatchOrder(
            labels.train, section.batch_size, recipe.seed, section.source_weights, section.bucket_batches,
            section.curriculum_steps, by_seconds=section.full_window < 1,
        )  # fmt: skip
        sampler = ExampleSampler(
            section.timestamps, section.previous_text, model_format.start_of_previous, model_format.max_length,
            recipe.seed,
        )  # fmt: skip
        corpus = read_utterances(recipe.root / "corpus", "train") if section.previous_text else []
        batches = training_batches(
            order, sampler, previous_labels(labels.train, corpus), collator, first_step=first_step,
            last_step=section.steps, rank=rank, world=world, workers=section.workers,
            size=choose_micro_batch_size(section, accelerator, setup, labels.train, sampler, collator),
        )  # fmt: skip
        # 4. Training: optimiser steps, validation and checkpoints.
        trainer.run(batches, first_step)
        # 5. The best student by its validation scores is the result.
        if main_process:
            trainer.keep_best()
            remove_caches(work.folder)
            counts = labels.counts() | {"skipped_steps": len(trainer.skipped)}
            work.finish(counts=counts, metrics=trainer.metrics())


def _parse_arguments() -> tuple[str, Recipe, TrainSection, str]:
    """Return the stage, the recipe, the recipe's section for the stage, and the command as typed."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--stage", choices=("train", "heal"), default="train")
    args, stage_arguments = parser.parse_known_args()
    recipe, command = parse_stage_arguments(args.stage, stage_arguments)
    section: TrainSection | None = getattr(recipe, args.stage)
    if section is None:
        raise UserError(f"{args.stage}: the recipe has no such section; add `{args.stage}: {{}}` for its defaults")
    return args.stage, recipe, section, command


if __name__ == "__main__":
    run_main(main)
