"""TODO: distill.training.inputs."""

from dataclasses import replace

from tqdm import tqdm

from data_prep.audio.augmentation import Augmentation
from data_prep.labels.label_store import Label
from data_prep.labels.quality_checks import kept_labels
from distill.data import encoder_cache
from distill.data.training_batches import Collator
from distill.data.vocabulary_map import VocabularyMap
from distill.training.teacher_outputs import StoredTeacher
from distill.training.trainer import Trainer
from eval.audio.recordings import SAMPLE_RATE
from eval.runtimes.model_format import ModelFormat
from recipes.core.errors import UserError
from recipes.schema.recipe import Recipe
from recipes.schema.train_section import TrainSection


def training_labels(
    recipe: Recipe, stage: str, form: ModelFormat, words: VocabularyMap | None
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


def build_collate(
    collate: Collator, recipe: Recipe, section: TrainSection, trainer: Trainer, labels: list[Label],
    words: VocabularyMap | None,
) -> Collator:  # fmt: skip
    """The training batches' extras: augmented audio or cached encoder states, stored teacher."""
    accelerator, folder = trainer.accelerator, trainer.work.folder
    collate = replace(collate, full_window=section.full_window)
    if section.augment is not None:
        collate = replace(collate, augment=Augmentation.of(section.augment, recipe.seed))
    if section.cache_encoder:
        states = encoder_cache.build_encoder_cache(
            folder / "encoder_states.npy", labels, collate, trainer.encoder(), batch_size=section.batch_size,
            rank=accelerator.process_index, world=accelerator.num_processes, wait=accelerator.wait_for_everyone,
        )  # fmt: skip
        collate = replace(collate, states=states)
    if section.teacher == "stored" and section.kl_weight > 0:
        with accelerator.main_process_first():
            stored = StoredTeacher(recipe.root / "labels", folder / "stored", section.temperature, words)
        collate = replace(collate, stored=stored)
    return collate
