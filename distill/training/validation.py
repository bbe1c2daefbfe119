"""Loss and WER of a sample of the validation labels while training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
class Validation:
    """The sample, and how it is scored: against the references where there are some, else against the labels."""

    labels: Sequence[Label]
    collate: Collator
    folder: Path
    """Of the student's tokenizer."""
    teacher: TeacherSection

    @classmethod
    def sample(
        cls, labels: Sequence[Label], most: int, collate: Collator, folder: Path, teacher: TeacherSection
    ) -> "Validation":
        """At most so many labels, of all lengths: label sets stand longest first."""
        every = max(1, -(-len(labels) // most))
        return cls(labels[::every], collate, folder, teacher)

    @torch.no_grad()
    def __call__(
        self,
        objective: DistillationObjective,
        student: WhisperForConditionalGeneration,
        accelerator: Accelerator,
        batch_size: int,
    ) -> dict[str, float]:
        """Mean loss a token and WER in percent; each process scores its share, all return the same."""
        transcriber = Transcriber(
            TorchRuntime(student, accelerator.device), self.folder, self.teacher.language, self.teacher.task
        )
        normalize = normalizer("basic", self.folder)
        mine = self.labels[accelerator.process_index :: accelerator.num_processes]
        losses: list[tuple[float, int]] = []
        pairs: list[tuple[str, str]] = []
        objective = objective.of(student).eval()
        for batch in validation_batches(mine, self.collate, batch_size=batch_size):
            losses.append(self._loss(objective, batch, accelerator))
            mel_BFT = objective.log_mel(batch.samples_BN.to(accelerator.device)).cpu().numpy()
            texts = [transcript.text for transcript in transcriber.decode(mel_BFT)]
            pairs += zip(batch.ids, texts, strict=True)
        losses, said = gather_object(losses), dict(gather_object(pairs))
        references = [normalize(label.reference or label.text) for label in self.labels]
        wer = error_rate(references, [normalize(said[label.id]) for label in self.labels])
        return {"wer": wer, "loss": sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses)}

    def _loss(self, objective: DistillationObjective, batch: Batch, accelerator: Accelerator) -> tuple[float, int]:
        with accelerator.autocast():
            sums = objective(batch.to(accelerator.device))
        return float(sums[0]), int(batch.predicted.sum())
