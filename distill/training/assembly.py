"""Student, objective, teacher and optimiser, assembled as the recipe asks and wrapped by accelerate."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
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
from recipes.schema.train_section import TrainSection


@dataclass(frozen=True)
class TrainingSetup:
    """The objects that training updates."""

    student: WhisperForConditionalGeneration
    """The model being trained, part of the objective; its weights are slices if it is sharded."""
    objective: DistillationObjective
    """The objective without its wrapper."""
    model: torch.nn.Module
    """The objective in accelerate's wrapper."""
    optimizer: torch.optim.Optimizer
    strategy: Strategy
    average: AveragedModel | None
    """Moving average of the student."""


def build_accelerator(section: TrainSection, folder: Path) -> Accelerator:
    """Return the accelerator of this process; trackers write to `folder`."""
    project = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder))
    return Accelerator(mixed_precision=section.precision, log_with=section.trackers or None, project_config=project)


def build_training_setup(
    section: TrainSection, accelerator: Accelerator, student_folder: Path, teacher_folder: Path, *,
    vocabulary: VocabularyMap | None, augmentation: Augmentation | None, seed: int,
) -> TrainingSetup:  # fmt: skip
    """Load the student and prepare it for the first training step.

    Raises UserError for a batch smaller than the number of processes, and for options that exclude each other.

    Args:
        section: The recipe's section.
        accelerator: Wraps the objective and the optimiser.
        student_folder: Model folder of the student as it was cut or compressed.
        teacher_folder: Model folder of the teacher, loaded if it teaches live.
        vocabulary: Maps tokens for a student with a trimmed vocabulary.
        augmentation: SpecAugment masks for the log-mels.
        seed: Seed of new weights, those of adapters and of the CTC head.
    """
    if section.batch_size < accelerator.num_processes:
        raise UserError(
            f"{section.name}.batch_size: expected at least one utterance for each of {accelerator.num_processes} "
            f"processes, found {section.batch_size}; increase it, or start fewer processes"
        )
    if accelerator.device.type == "cpu":
        # Some gradients are summed in the order in which threads finish. A fixed order makes runs repeatable.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    student = load_model(student_folder)
    student.model.encoder.requires_grad_(not section.freeze_encoder)
    student.model.encoder.embed_positions.requires_grad_(False)  # constant sinusoids in Whisper
    if section.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    weights = LossWeights(
        section.ce_weight, section.kl_weight, section.temperature, section.ctc_weight, section.hidden_weight
    )
    teacher = _load_live_teacher(section, student, teacher_folder, accelerator.device, vocabulary)
    objective = DistillationObjective(
        student, weights, freeze_encoder=section.freeze_encoder, teacher=teacher, augmentation=augmentation
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
    return TrainingSetup(student, accelerator.unwrap_model(model), model, optimizer, strategy, average)


def _load_live_teacher(
    section: TrainSection, student: WhisperForConditionalGeneration, folder: Path, device: torch.device,
    vocabulary: VocabularyMap | None,
) -> LiveTeacher | None:  # fmt: skip
    """Return the live teacher, or None if the recipe uses a stored one or none."""
    if section.kl_weight == 0 or section.teacher == "stored":
        return None
    teacher = LiveTeacher(
        folder, student, device, frozen=section.freeze_encoder, quantize=section.quantize_teacher,
        vocabulary=vocabulary,
    )  # fmt: skip
    if section.cache_encoder and not teacher.shares_encoder:
        raise UserError(
            f"{section.name}.cache_encoder: expected a student with the live teacher's encoder, found a different one, "
            f"so that the teacher needs the audio; set {section.name}.teacher=stored or cache_encoder=false"
        )
    return teacher
