"""Stage `train`: the student learns the teacher's labels and its distribution over tokens.

accelerate launch distill/train.py recipes/demo/recipe.yaml

With `--stage heal` the same is done to the compressed student, by the recipe's section `heal`.
"""

import eval.startup  # noqa: F401

import argparse
from dataclasses import replace

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from tqdm import tqdm

from data_prep.augment import Augmentation
from data_prep.label_store import Label
from data_prep.quality import kept_labels
from distill import encoder_cache
from distill.batches import Collate, Order, training_batches
from distill.correspondence import Correspondence
from distill.examples import Drawing, predecessors
from distill.teaching import StoredTeacher
from distill.trainer import Trainer
from distill.validation import Validation
from eval.audio import SAMPLE_RATE
from eval.runtimes.format import Format
from eval.utterances import read_utterances
from recipes.errors import UserError, run_main
from recipes.flow import checkpoint
from recipes.models import model_folder
from recipes.schema import Recipe
from recipes.stage import arguments, open_stage
from recipes.training import Train


def main() -> None:
    """Data, student and teacher, the steps, the best student."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--stage", choices=("train", "heal"), default="train")
    given, rest = parser.parse_known_args()
    stage: str = given.stage
    recipe, command = arguments(stage, rest)
    section: Train | None = getattr(recipe, stage)
    if section is None:
        raise UserError(f"{stage}: the recipe has no such section; add `{stage}: {{}}` for its defaults")
    partial, source = recipe.root / f"{stage}.partial", checkpoint(recipe, before=stage)
    accelerator = Accelerator(
        mixed_precision=section.precision, log_with=section.trackers or None,
        project_config=ProjectConfiguration(project_dir=str(partial), logging_dir=str(partial)),
    )  # fmt: skip
    main_process = accelerator.is_main_process
    with open_stage(recipe, stage, command, main=main_process, wait=accelerator.wait_for_everyone) as work:
        # 1. Labels that quality kept, and how they become batches.
        form = Format.load(source, recipe.teacher.language, recipe.teacher.task)
        words = Correspondence.between(model_folder(recipe.teacher.model), source)
        train, validation, too_long = split(recipe, stage, form, words)
        collate = Collate(form.window_samples, form.end)
        sample = Validation.sample(validation, section.validation_utterances, collate, source, recipe.teacher)
        # 2. Student, teacher and optimiser, where a killed run left them.
        trainer = Trainer(recipe, section, accelerator, work, sample)
        first_step = trainer.resume()
        # 3. The steps.
        collate = equip(collate, recipe, section, trainer, train, words)
        order = Order(
            train, section.batch_size, recipe.seed, section.source_weights, section.bucket_batches,
            section.curriculum_steps, by_seconds=section.full_window < 1,
        )  # fmt: skip
        drawing = Drawing(
            section.timestamps, section.previous_text, form.start_of_previous, form.max_length, recipe.seed
        )
        before = predecessors(train, read_utterances(recipe.root / "corpus", "train")) if section.previous_text else {}
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


def split(
    recipe: Recipe, stage: str, form: Format, words: Correspondence | None
) -> tuple[list[Label], list[Label], int]:
    """Kept labels of the train and of the validation split in the student's tokens, and how many were left out.

    Those are longer than the student's window, if that was shortened: it hears a part of what they say. UserError when
    a split has no labels.
    """
    labels = kept_labels(recipe.root)
    fit = [label for label in labels if label.seconds * SAMPLE_RATE <= form.window_samples]
    if len(fit) < len(labels):
        tqdm.write(f"{stage}: {len(labels) - len(fit)} of {len(labels)} labels are longer than the student's window")
    found = {name: [label for label in fit if label.split == name] for name in ("train", "validation")}
    for name, rows in found.items():
        if not rows:
            where = recipe.root / "labels"
            raise UserError(f"{stage}: expected kept labels in the {name} split of {where}, found none")
        if words is not None:
            found[name] = [words.label(label) for label in rows]
    return found["train"], found["validation"], len(labels) - len(fit)


def equip(
    collate: Collate, recipe: Recipe, section: Train, trainer: Trainer, labels: list[Label],
    words: Correspondence | None,
) -> Collate:  # fmt: skip
    """The training batches' extras: augmented audio or cached encoder states, stored teacher."""
    accelerator, folder = trainer.accelerator, trainer.work.folder
    collate = replace(collate, full_window=section.full_window)
    if section.augment is not None:
        collate = replace(collate, augment=Augmentation.of(section.augment, recipe.seed))
    if section.cache_encoder:
        states = encoder_cache.build(
            folder / "encoder_states.npy", labels, collate, trainer.encoder(), batch_size=section.batch_size,
            rank=accelerator.process_index, world=accelerator.num_processes, wait=accelerator.wait_for_everyone,
        )  # fmt: skip
        collate = replace(collate, states=states)
    if section.teacher == "stored" and section.kl_weight > 0:
        with accelerator.main_process_first():
            stored = StoredTeacher(recipe.root / "labels", folder / "stored", section.temperature, words)
        collate = replace(collate, stored=stored)
    return collate


if __name__ == "__main__":
    run_main(main)
