"""Student, loss, teacher and optimiser, as the recipe asks and as accelerate wraps them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel
from transformers import WhisperForConditionalGeneration

from data_prep.audio.augmentation import Augmentation
from distill.data.vocabulary_map import VocabularyMap
from distill.losses.distillation_loss import LossWeights
from distill.training import optimization
from distill.training.objective import DistillationObjective
from distill.training.strategy import Strategy, prepare_for_training
from distill.training.teacher_outputs import LiveTeacher
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import UserError
from recipes.core.model_folder import resolve_model_folder
from recipes.schema.recipe import Recipe
from recipes.schema.train_section import TrainSection


@dataclass(frozen=True)
class TrainingSetup:
    """What the steps move."""

    student: WhisperForConditionalGeneration
    """Inside the model; where it is sharded, in slices."""
    model: torch.nn.Module
    """The objective in its wrapper."""
    optimizer: torch.optim.Optimizer
    strategy: Strategy
    average: AveragedModel | None
    """Moving average of the student."""


def build_training_setup(
    recipe: Recipe, section: TrainSection, accelerator: Accelerator, folder: Path
) -> TrainingSetup:
    """Read the student that was cut or compressed and make it ready for the first step."""
    if accelerator.device.type == "cpu":
        # Some gradients add up in the order in which threads come; this fixes the order, so that runs repeat.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    student = load_model(folder)
    student.model.encoder.requires_grad_(not section.freeze_encoder)
    student.model.encoder.embed_positions.requires_grad_(False)  # sinusoids, by Whisper's design
    if section.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    objective = DistillationObjective(
        student,
        LossWeights(
            section.ce_weight, section.kl_weight, section.temperature, section.ctc_weight, section.hidden_weight
        ),
        freeze_encoder=section.freeze_encoder,
        teacher=_teacher(recipe, section, student, folder, accelerator.device),
        augment=Augmentation.of(section.augment, recipe.seed) if section.augment else None,
    )
    if section.lora is not None:
        optimization.add_adapters(student, section.lora, encoder=not section.freeze_encoder)
    if section.compile:
        student.model.encoder.compile()
        student.model.decoder.compile()
    average = None
    if section.ema_decay:
        average = optimization.moving_average(student, section.ema_decay).to(accelerator.device)
    trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = optimization.build_optimizer(section, trainable, accelerator.device)
    model, optimizer, strategy = prepare_for_training(accelerator, section, objective, optimizer)
    return TrainingSetup(student, model, optimizer, strategy, average)


def _teacher(
    recipe: Recipe, section: TrainSection, student: WhisperForConditionalGeneration, folder: Path, device: torch.device
) -> LiveTeacher | None:
    if section.kl_weight == 0 or section.teacher == "stored":
        return None
    whole = resolve_model_folder(recipe.teacher.model)
    teacher = LiveTeacher(
        whole, student, device, frozen=section.freeze_encoder, quantize=section.quantize_teacher,
        words=VocabularyMap.between(whole, folder),
    )  # fmt: skip
    if section.cache_encoder and not teacher.shares_encoder:
        raise UserError(
            f"{section.name}.cache_encoder: the student's encoder is not the live teacher's, which needs the audio "
            f"itself; set {section.name}.teacher=stored or cache_encoder=false"
        )
    return teacher
