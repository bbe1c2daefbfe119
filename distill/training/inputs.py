"""The trainer's inputs: labels in the student's tokens, and the collator with cached states and a stored teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from data_prep.audio.augmentation import Augmentation
from data_prep.labels.label_store import Label
from data_prep.labels.quality_checks import kept_labels
from distill.data.encoder_cache import build_encoder_cache
from distill.data.training_batches import Batch, Collator
from distill.data.vocabulary_map import VocabularyMap
from distill.training.assembly import TrainingSetup
from distill.training.teacher_outputs import StoredTeacher
from eval.audio.recordings import SAMPLE_RATE
from recipes.core.errors import UserError
from recipes.core.logs import log
from recipes.schema.train_section import TrainSection

_ENCODER_STATES = "encoder_states.npy"
_STORED_TEACHER = "stored"


@dataclass(frozen=True)
class TrainingLabels:
    """The kept labels in the student's tokens."""

    train: list[Label]
    validation: list[Label]
    too_long: int
    """Labels left out because they are longer than the student's window."""

    def counts(self) -> dict[str, int]:
        """Return the numbers of labels for `stage.json`."""
        return {"train": len(self.train), "validation": len(self.validation), "too_long": self.too_long}


def training_labels(root: Path, stage: str, window_samples: int, vocabulary: VocabularyMap | None) -> TrainingLabels:
    """Read the labels that the quality stage kept, and express them in the student's tokens.

    Labels longer than the student's window, if that was shortened, are left out: the student would hear only a part of
    what they say. Raises UserError if a split has no labels.

    Args:
        root: Folder of the run.
        stage: Name of the stage, for messages.
        window_samples: Length of the student's window.
        vocabulary: Maps tokens for a student with a trimmed vocabulary.
    """
    labels = kept_labels(root)
    fitting = [label for label in labels if label.seconds * SAMPLE_RATE <= window_samples]
    too_long = len(labels) - len(fitting)
    if too_long:
        log.warning(f"{stage}: {too_long} of {len(labels)} labels are longer than the student's window and left out")
    splits = {name: [label for label in fitting if label.split == name] for name in ("train", "validation")}
    for name, split in splits.items():
        if not split:
            raise UserError(f"{stage}: expected kept labels in the {name} split of {root / 'labels'}, found none")
        if vocabulary is not None:
            splits[name] = [vocabulary.map_label(label) for label in split]
    return TrainingLabels(splits["train"], splits["validation"], too_long)


def build_collator(
    collator: Collator, section: TrainSection, accelerator: Accelerator, setup: TrainingSetup, *,
    labels: Sequence[Label], labels_folder: Path, folder: Path, augmentation: Augmentation | None,
    vocabulary: VocabularyMap | None,
) -> Collator:  # fmt: skip
    """Return the collator of the training batches: `collator` with the extras that the recipe's section asks for.

    These are augmented audio or cached encoder states, and the stored teacher's distributions.

    Args:
        collator: The collator without extras.
        section: The recipe's section.
        accelerator: Describes this process and the others.
        setup: The student, whose frozen encoder fills the cache.
        labels: Training labels, whose audio is encoded.
        labels_folder: Folder of the label shards, for the stored teacher.
        folder: Working folder of the stage, for caches; `remove_caches` removes them.
        augmentation: Changes to the audio.
        vocabulary: Maps tokens for a student with a trimmed vocabulary.
    """
    collator = replace(collator, full_window=section.full_window, augmentation=augmentation)
    if section.cache_encoder:
        states = build_encoder_cache(
            folder / _ENCODER_STATES, labels, collator, _frozen_encoder(setup, accelerator),
            batch_size=section.batch_size, rank=accelerator.process_index, world=accelerator.num_processes,
            wait=accelerator.wait_for_everyone,
        )  # fmt: skip
        collator = replace(collator, states=states)
    if section.teacher == "stored" and section.kl_weight > 0:
        with accelerator.main_process_first():
            stored = StoredTeacher(labels_folder, folder / _STORED_TEACHER, section.temperature, vocabulary)
        collator = replace(collator, stored=stored)
    return collator


def remove_caches(folder: Path) -> None:
    """Remove the caches that `build_collator` made in `folder`."""
    StoredTeacher.remove_cache(folder / _STORED_TEACHER)
    (folder / _ENCODER_STATES).unlink(missing_ok=True)


def _frozen_encoder(setup: TrainingSetup, accelerator: Accelerator) -> Callable[[Batch], torch.Tensor]:
    """Return a function from a batch to the encoder states [B, S, D] of the student's frozen encoder."""
    objective = setup.objective.for_student(setup.strategy.student()).eval()

    @torch.no_grad()
    def encode(batch: Batch) -> torch.Tensor:
        with accelerator.autocast():
            return objective.encode(objective.log_mel(batch.samples_BN.to(accelerator.device)))

    return encode
