"""Validation during training: loss and WER of a sample of the validation labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import WhisperForConditionalGeneration

from data_prep.labels.label_store import Label
from distill.data.training_batches import Batch, Collator, validation_batches
from distill.training.objective import DistillationObjective
from eval.decoding.transcriber import Transcriber
from eval.runtimes.torch_runtime import TorchRuntime
from eval.scoring.error_rates import error_rate, normalizer
from recipes.schema.teacher_section import TeacherSection


@dataclass(frozen=True)
class ValidationScores:
    """Scores of the student on the validation sample after a training step."""

    step: int
    wer: float
    """Word error rate, %."""
    loss: float
    """Mean loss per predicted token."""

    def rank(self, select: Literal["wer", "loss"]) -> tuple[float, float]:
        """Return a key to compare students by, smaller is better: the score `select`, then the other one."""
        return (self.wer, self.loss) if select == "wer" else (self.loss, self.wer)


@dataclass(frozen=True)
class Validator:
    """Scores a student on a sample of the validation labels.

    The WER is measured against the corpus's reference where an utterance has one, else against its label.
    """

    labels: Sequence[Label]
    """The sample."""
    collator: Collator
    student_folder: Path
    """Model folder with the student's tokenizer."""
    teacher: TeacherSection
    """Language and task."""

    @classmethod
    def sample(
        cls, labels: Sequence[Label], limit: int, collator: Collator, student_folder: Path, teacher: TeacherSection
    ) -> "Validator":
        """Return a validator of at most `limit` labels, evenly spaced.

        Label sets are sorted by length, longest first, so the sample has labels of all lengths.
        """
        every = max(1, -(-len(labels) // limit))
        return cls(labels[::every], collator, student_folder, teacher)

    @torch.no_grad()
    def score(
        self,
        objective: DistillationObjective,
        student: WhisperForConditionalGeneration,
        accelerator: Accelerator,
        *,
        step: int,
        batch_size: int,
    ) -> ValidationScores:
        """Score `student` after `step`; each process computes its share, and all return the same scores."""
        transcriber = Transcriber(
            TorchRuntime(student, accelerator.device), self.student_folder, self.teacher.language, self.teacher.task
        )
        normalize = normalizer("basic", self.student_folder)
        share = self.labels[accelerator.process_index :: accelerator.num_processes]
        losses: list[tuple[float, int]] = []
        texts: list[tuple[str, str]] = []
        objective = objective.for_student(student).eval()
        for batch in validation_batches(share, self.collator, batch_size=batch_size):
            losses.append(self._loss(objective, batch, accelerator))
            mel_BFT = objective.log_mel(batch.samples_BN.to(accelerator.device)).cpu().numpy()
            transcripts = transcriber.decode(mel_BFT)
            texts += [(name, transcript.text) for name, transcript in zip(batch.ids, transcripts, strict=True)]
        losses, text_by_id = gather_object(losses), dict(gather_object(texts))
        references = [normalize(label.reference or label.text) for label in self.labels]
        wer = error_rate(references, [normalize(text_by_id[label.id]) for label in self.labels])
        return ValidationScores(step, wer, sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses))

    def _loss(self, objective: DistillationObjective, batch: Batch, accelerator: Accelerator) -> tuple[float, int]:
        """Return a batch's summed loss and its number of predicted tokens."""
        with accelerator.autocast():
            sums = objective(batch.to(accelerator.device))
        return float(sums[0]), int(batch.predicted.sum())
