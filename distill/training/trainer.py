"""The training loop, on one process or on each of several: forward, backward, update, validate, save."""

import math
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distill.data.training_batches import Batch
from distill.models.saving import save_model
from distill.training import optimization
from distill.training.assembly import TrainingSetup
from distill.training.checkpoint import (
    Checkpoint,
    SkippedStep,
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from distill.training.metrics_log import MetricsLog
from distill.training.strategy import without_head
from distill.training.validation import ValidationScores, Validator
from recipes.core.errors import RunError
from recipes.core.logs import log
from recipes.core.progress import Progress
from recipes.schema.train_section import TrainSection


@dataclass(frozen=True)
class _StepResult:
    loss: float
    stopping: bool
    """Whether a process was asked to stop."""


class Trainer:
    """Trains a student and keeps the best one by its validation scores.

    Args:
        section: The recipe's section.
        accelerator: Describes this process and the others.
        setup: Student, optimiser and what belongs to them.
        validator: Scores the student.
        folder: Working folder of the stage: checkpoints, `metrics.jsonl` and the best student in `model`.
        student_folder: Model folder of the student before training; its processor files are copied.
        seed: Seed of the random numbers that a step draws, such as for dropout.
    """

    def __init__(
        self, section: TrainSection, accelerator: Accelerator, setup: TrainingSetup, validator: Validator, *,
        folder: Path, student_folder: Path, seed: int,
    ):  # fmt: skip
        self.section, self.accelerator, self.setup, self.validator = section, accelerator, setup, validator
        self.folder, self.student_folder, self.seed = folder, student_folder, seed
        self.metrics_log = MetricsLog(folder, accelerator)
        self.best: ValidationScores | None = None
        self.skipped: list[SkippedStep] = []
        self._stop_requested = False

    def resume(self) -> int:
        """Load the newest checkpoint, if there is one, and return the number of finished steps."""
        path, step, average = latest_checkpoint(self.folder / "checkpoints"), 0, self.setup.average
        if path is not None:
            names = ["model", *(["average"] if average is not None else [])]
            checkpoint = load_checkpoint(path, names, self.accelerator.device)
            self.setup.strategy.load(checkpoint.models["model"], checkpoint.moments)
            if average is not None:
                average.load_state_dict(checkpoint.models["average"], strict=False)
            step, state = checkpoint.step, checkpoint.trainer
            self.best = ValidationScores(**state["best"]) if state["best"] else None
            self.skipped = state["skipped"]
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            if self.accelerator.is_main_process:
                log.info(f"{self.section.name}: resuming after step {step}")
        self.metrics_log.start_after(step)
        return step

    def run(self, batches: Iterator[list[Batch]], first_step: int) -> None:
        """Train from the step after `first_step` to the recipe's last one.

        `batches` yields the batches of each of these steps. After SIGTERM the current step is finished and saved, and
        RunError is raised.
        """
        section, main = self.section, self.accelerator.is_main_process
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stop_requested", True))
        with Progress(section.name, section.steps, initial=first_step, disable=not main) as progress:
            for step, step_batches in enumerate(batches, first_step + 1):
                result = self.step(step, step_batches)
                if step % section.eval_steps == 0 or step == section.steps:
                    self.validate(step)
                if step % section.save_steps == 0 or step == section.steps or result.stopping:
                    self.save(step)
                best = f", best WER {self.best.wer:.1f} %" if self.best is not None else ""
                progress.update(figures=f"loss {result.loss:.4f}{best}")
                if result.stopping and step < section.steps:
                    raise RunError(
                        f"{section.name}: stopped by SIGTERM, saved after step {step}; run the same command to continue"
                    )
        self.metrics_log.close()

    def step(self, step: int, batches: Sequence[Batch]) -> _StepResult:
        """Take one optimiser step on the mean loss over the predicted tokens of all processes."""
        started, accelerator, setup = time.perf_counter(), self.accelerator, self.setup
        # The seed depends on step and process only, so that a resumed run has the dropout of an uninterrupted one.
        set_seed(self.seed * 1_000_003 + step * 1_009 + accelerator.process_index)
        setup.model.train()
        setup.student.model.encoder.train(not self.section.freeze_encoder)
        rate = optimization.learning_rate_at(self.section, step)
        for group in setup.optimizer.param_groups:
            group["lr"] = rate
        batches = [batch.to(accelerator.device) for batch in batches]
        counts = torch.tensor([sum(int(batch.predicted.sum()) for batch in batches), int(self._stop_requested)])
        tokens, stopping = accelerator.reduce(counts.to(accelerator.device), "sum").tolist()
        sums_5 = self._accumulate_gradients(step, batches, tokens)
        norm = float(accelerator.clip_grad_norm_(setup.model.parameters(), self.section.max_grad_norm) or 0.0)
        loss, ce, kl, ctc, hidden = (accelerator.reduce(sums_5, "sum") / tokens).tolist()
        if math.isfinite(loss) and (math.isfinite(norm) or accelerator.scaler is not None):
            setup.optimizer.step()
            if setup.average is not None:
                setup.average.update_parameters(setup.student)
        else:
            self._skip(step, batches, sums_5)
        setup.optimizer.zero_grad()
        auxiliary = {"ctc": ctc} if self.section.ctc_weight else {}
        auxiliary |= {"hidden": hidden} if self.section.hidden_weight else {}
        seconds = time.perf_counter() - started
        self.metrics_log.write(
            step, loss=loss, ce=ce, kl=kl, **auxiliary, learning_rate=rate, grad_norm=norm, tokens=int(tokens),
            seconds=round(seconds, 4), tokens_per_second=round(tokens / seconds, 1),
        )  # fmt: skip
        return _StepResult(loss, bool(stopping))

    def _accumulate_gradients(self, step: int, batches: Sequence[Batch], tokens: int) -> Tensor:
        """Accumulate the gradients of a step's batches, and return the objective's sums [5] over this process."""
        accelerator, model = self.accelerator, self.setup.model
        sums_5 = torch.zeros(5, device=accelerator.device)
        scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
        for number, batch in enumerate(batches, 1):
            accelerator.sync_gradients = number == len(batches)
            with nullcontext() if accelerator.sync_gradients else accelerator.no_sync(model):
                with accelerator.autocast():
                    sums = model(batch, scale)
                if self.setup.strategy.steps_in_backward:
                    self._require_finite(step, batch, sums)
                # DDP averages gradients over the processes. Multiplied by their number, they are those of the sum over
                # all processes, divided by the tokens of all processes.
                accelerator.backward(sums[0] * accelerator.num_processes / tokens)
            sums_5 += sums.detach()
        return sums_5

    def _skip(self, step: int, batches: Sequence[Batch], sums_5: Tensor) -> None:
        """Record a step that leaves the weights unchanged; raise RunError after too many of them."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        name, ids = self.section.name, [name for batch in batches for name in batch.ids]
        # The utterances of the processes whose loss was not finite, else, if only the gradient was not, all.
        utterances = gather_object(ids if not torch.isfinite(sums_5).all() else []) or gather_object(ids)
        self.skipped.append({"step": step, "utterances": utterances})
        listed = ", ".join(utterances)
        if self.accelerator.is_main_process:
            log.warning(f"{name}: skipped step {step}, whose loss was not a number; utterances {listed}")
        if len(self.skipped) > self.section.max_skipped:
            raise RunError(
                f"{name}.max_skipped: expected at most {self.section.max_skipped} skipped steps, found that the loss "
                f"was not a number in {len(self.skipped)} steps, last in step {step}, utterances {listed}; lower the "
                "learning rate, or leave these utterances out"
            )

    def _require_finite(self, step: int, batch: Batch, sums_5: Tensor) -> None:
        """Raise RunError if the loss of a batch is not finite, for strategies that cannot skip a step."""
        if utterances := gather_object(batch.ids if not torch.isfinite(sums_5).all() else []):
            raise RunError(
                f"{self.section.name}: the loss was not a number in step {step}, utterances {', '.join(utterances)}; "
                "DeepSpeed cannot skip such a step; leave them out, lower the learning rate or use "
                "recipes/accelerate/fsdp.yaml"
            )

    def current_student(self) -> WhisperForConditionalGeneration:
        """Return the student that is validated and saved: the moving average if there is one."""
        average = self.setup.average
        student: WhisperForConditionalGeneration = (
            average.module if average is not None else self.setup.strategy.student()
        )
        return student

    def validate(self, step: int) -> None:
        """Score the student, log the scores, and save the student if it is the best so far."""
        student = self.current_student()
        scores = self.validator.score(
            self.setup.objective, student, self.accelerator, step=step, batch_size=self.section.batch_size
        )
        self.metrics_log.write(step, validation_loss=scores.loss, validation_wer=scores.wer)
        select = self.section.select
        if self.best is None or scores.rank(select) < self.best.rank(select):
            self.best = scores
            if self.accelerator.is_main_process:
                merged = optimization.merge_adapters(student)
                save_model(merged, self.folder / "model", processors=self.student_folder)
        self.accelerator.wait_for_everyone()

    def save(self, step: int) -> None:
        """Write a checkpoint from which `resume` continues exactly."""
        models, moments = {"model": self.setup.strategy.weights()}, self.setup.strategy.moments()
        if self.setup.average is not None:
            models["average"] = without_head(self.setup.average.state_dict())
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = TrainerState(
                best=asdict(self.best) if self.best is not None else {},
                skipped=self.skipped,
                scaler=scaler.state_dict() if scaler is not None else None,
            )
            save_checkpoint(self.folder / "checkpoints", Checkpoint(step, models, moments, state))
        self.accelerator.wait_for_everyone()

    def keep_best(self) -> None:
        """Leave the best student in `model`, without any step the untrained one, and remove the checkpoints."""
        if self.best is None:
            shutil.copytree(self.student_folder, self.folder / "model", dirs_exist_ok=True)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def metrics(self) -> dict[str, Any]:
        """Return the run's metrics for `stage.json`."""
        return {
            "steps": self.section.steps,
            "processes": self.accelerator.num_processes,
            "best": asdict(self.best) if self.best is not None else {},
            "skipped": self.skipped,
        }
