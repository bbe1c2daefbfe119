"""The steps of a distillation run on one process of possibly many: forward, backward, keep, watch."""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from data_prep.labels.label_store import Label
from distill.data.examples import ExampleSampler
from distill.data.training_batches import Batch, Collator
from distill.models.saving import save_model
from distill.training import optimization
from distill.training.assembly import build_training_setup
from distill.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from distill.training.objective import DistillationObjective
from distill.training.strategy import without_head
from distill.training.validation import Validation
from eval.runtimes.process_memory import out_of_memory
from recipes.core.errors import RunError, UserError
from recipes.engine.stage_folder import StageFolder
from recipes.schema.recipe import Recipe
from recipes.schema.train_section import TrainSection


class Trainer:
    """Holds what a run holds; `run` is the loop."""

    def __init__(
        self, recipe: Recipe, section: TrainSection, accelerator: Accelerator, work: StageFolder, validation: Validation
    ):
        if section.batch_size < accelerator.num_processes:
            raise UserError(
                f"{section.name}.batch_size: expected at least one utterance for each of {accelerator.num_processes} "
                f"processes, found {section.batch_size}"
            )
        self.recipe, self.section, self.accelerator, self.work = recipe, section, accelerator, work
        self.validation, self.folder = validation, validation.folder
        parts = build_training_setup(recipe, section, accelerator, self.folder)
        self.student, self.model, self.average = parts.student, parts.model, parts.average
        self.optimizer, self.strategy = parts.optimizer, parts.strategy
        self.best: dict[str, float] = {}
        self.skipped: list[dict[str, Any]] = []
        self.stopping = False

    @property
    def objective(self) -> DistillationObjective:
        """The module inside whatever wraps it."""
        inner: DistillationObjective = self.accelerator.unwrap_model(self.model)
        return inner

    def encoder(self) -> Callable[[Batch], torch.Tensor]:
        """From a batch of audio to the frozen encoder's states [B, S, D]."""
        objective = self.objective.of(self.strategy.student()).eval()

        @torch.no_grad()
        def encode(batch: Batch) -> torch.Tensor:
            with self.accelerator.autocast():
                return objective.encode(objective.log_mel(batch.samples_BN.to(self.accelerator.device)))

        return encode

    def resume(self) -> int:
        """Load the newest checkpoint; the step to go on from."""
        checkpoint, step = latest_checkpoint(self.work.folder / "checkpoints"), 0
        if checkpoint is not None:
            names = ["model", *(["average"] if self.average is not None else [])]
            weights, moments, state = load_checkpoint(checkpoint, names, self.accelerator.device)
            self.strategy.load(weights["model"], moments)
            if self.average is not None:
                self.average.load_state_dict(weights["average"], strict=False)
            step, self.best, self.skipped = int(state["step"]), state["best"], state["skipped"]
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            if self.accelerator.is_main_process:
                tqdm.write(f"{self.section.name}: going on from step {step}")
        if self.accelerator.is_main_process:
            _keep_lines(self.work, step)
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})
        return step

    def micro_batch_size(self, labels: Sequence[Label], drawing: ExampleSampler, collate: Collator) -> int:
        """Utterances a forward pass; `auto` halves the process's share of a step until the longest ones fit."""
        share = -(-self.section.batch_size // self.accelerator.num_processes)
        if self.section.micro_batch_size != "auto":
            return min(self.section.micro_batch_size or share, share)
        longest = sorted(labels, key=lambda label: -len(label.plain.tokens))[:share]
        examples, size = [drawing(label, None, 0) for label in longest], share
        while not self._fits(collate(examples[:size])):
            if size == 1:
                raise RunError(f"{self.section.name}.micro_batch_size: not even one utterance fits in memory")
            size //= 2
        smallest = min(gather_object([size]))
        if self.accelerator.is_main_process and smallest < share:
            tqdm.write(f"{self.section.name}: {smallest} utterances at a time fit in memory")
        return int(smallest)

    def _fits(self, batch: Batch) -> bool:
        try:
            with self.accelerator.autocast():
                sums = self.objective.train()(batch.to(self.accelerator.device))
            sums[0].backward()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            self.optimizer.zero_grad()
        return True

    def run(self, batches: Iterator[list[Batch]], first_step: int) -> None:
        """Optimise from first_step to the recipe's last; SIGTERM saves and ends."""
        section, main = self.section, self.accelerator.is_main_process
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        bar = tqdm(initial=first_step, total=section.steps, desc=section.name, disable=not main)
        for step, micro in enumerate(batches, first_step + 1):
            stopping = self.step(step, micro)
            if step % section.eval_steps == 0 or step == section.steps:
                self.validate(step)
            if step % section.save_steps == 0 or step == section.steps or stopping:
                self.save(step)
            bar.set_postfix(wer=self.best.get("wer"), refresh=False)
            bar.update()
            if stopping and step < section.steps:
                raise RunError(f"{section.name}: told to stop, saved after step {step}; the same command goes on")
        bar.close()
        self.accelerator.end_training()

    def step(self, step: int, batches: Sequence[Batch]) -> bool:
        """One optimiser step; the loss is the mean over the valid tokens of all processes. Whether any is to stop."""
        started, accelerator = time.perf_counter(), self.accelerator
        # Dropout is drawn from the step and process alone, so a resumed run draws what an uninterrupted one does.
        set_seed(self.recipe.seed * 1_000_003 + step * 1_009 + accelerator.process_index)
        self.model.train()
        self.student.model.encoder.train(not self.section.freeze_encoder)
        rate = optimization.learning_rate_at(self.section, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = [batch.to(accelerator.device) for batch in batches]
        mine = torch.tensor([sum(int(batch.predicted.sum()) for batch in batches), int(self.stopping)])
        tokens, stopping = accelerator.reduce(mine.to(accelerator.device), "sum").tolist()
        sums_5 = torch.zeros(5, device=accelerator.device)
        scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
        for number, batch in enumerate(batches, 1):
            accelerator.sync_gradients = number == len(batches)
            with nullcontext() if accelerator.sync_gradients else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    sums = self.model(batch, scale)
                if self.strategy.steps_in_backward:
                    self._must_be_finite(step, batch, sums)
                # DDP averages gradients over processes: times their number, this is the sum over all tokens / tokens.
                accelerator.backward(sums[0] * accelerator.num_processes / tokens)
            sums_5 += sums.detach()
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), self.section.max_grad_norm) or 0.0)
        total, ce, kl, ctc, hidden = (accelerator.reduce(sums_5, "sum") / tokens).tolist()
        if math.isfinite(total) and (math.isfinite(norm) or accelerator.scaler is not None):
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.student)
        else:
            self._skip(step, batches, sums_5)
        self.optimizer.zero_grad()
        parts = {"ctc": ctc} if self.section.ctc_weight else {}
        parts |= {"hidden": hidden} if self.section.hidden_weight else {}
        seconds = time.perf_counter() - started
        self._log(
            step, loss=total, ce=ce, kl=kl, **parts, learning_rate=rate, grad_norm=norm, tokens=int(tokens),
            seconds=round(seconds, 4), tokens_per_second=round(tokens / seconds, 1),
        )  # fmt: skip
        return bool(stopping)

    def _skip(self, step: int, batches: Sequence[Batch], sums_5: torch.Tensor) -> None:
        """Leave the weights as they are; end the run after too many such steps."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        mine = [name for batch in batches for name in batch.ids] if not torch.isfinite(sums_5).all() else []
        names = gather_object(mine) or gather_object([name for batch in batches for name in batch.ids])
        self.skipped.append({"step": step, "utterances": names})
        tqdm.write(f"{self.section.name}: step {step} skipped, its loss is not a number; utterances {', '.join(names)}")
        if len(self.skipped) > self.section.max_skipped:
            raise RunError(
                f"{self.section.name}: the loss was not a number in {len(self.skipped)} steps, more than max_skipped; "
                f"the last one was step {step}, utterances {', '.join(names)}"
            )

    def _must_be_finite(self, step: int, batch: Batch, sums_5: torch.Tensor) -> None:
        """Where the weights move within the backward pass, a step cannot be skipped after it."""
        if wrong := gather_object(batch.ids if not torch.isfinite(sums_5).all() else []):
            raise RunError(
                f"{self.section.name}: the loss was not a number in step {step}, utterances {', '.join(wrong)}; with "
                "DeepSpeed such a step is not skipped; leave them out, lower the learning rate or use "
                "recipes/accelerate/fsdp.yaml"
            )

    def kept_student(self) -> WhisperForConditionalGeneration:
        """The weights that are validated and kept: the moving average where there is one."""
        kept: WhisperForConditionalGeneration = (
            self.average.module if self.average is not None else self.strategy.student()
        )
        return kept

    def validate(self, step: int) -> None:
        """Loss and WER of the validation sample; a better student is kept."""
        kept = self.kept_student()
        result = self.validation(self.objective, kept, self.accelerator, self.section.batch_size)
        self._log(step, validation_loss=result["loss"], validation_wer=result["wer"])
        first, then = ("wer", "loss") if self.section.select == "wer" else ("loss", "wer")
        if not self.best or (result[first], result[then]) < (self.best[first], self.best[then]):
            self.best = {"step": step, **result}
            if self.accelerator.is_main_process:
                save_model(optimization.merge_adapters(kept), self.work.folder / "model", processors=self.folder)
        self.accelerator.wait_for_everyone()

    def save(self, step: int) -> None:
        """Write a checkpoint from which `resume` goes on as if nothing had happened."""
        models, moments = {"model": self.strategy.weights()}, self.strategy.moments()
        if self.average is not None:
            models["average"] = without_head(self.average.state_dict())
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            extra = {
                "best": self.best, "skipped": self.skipped,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }  # fmt: skip
            save_checkpoint(self.work.folder / "checkpoints", step, models, moments, extra)
        self.accelerator.wait_for_everyone()

    def finish(self, counts: dict[str, int]) -> None:
        """Leave the best student and the metrics in the stage folder."""
        if not self.best:  # no steps: the student as it was cut
            shutil.copytree(self.folder, self.work.folder / "model", dirs_exist_ok=True)
        shutil.rmtree(self.work.folder / "checkpoints", ignore_errors=True)
        self.work.finish(
            counts=counts | {"skipped_steps": len(self.skipped)},
            metrics={
                "steps": self.section.steps,
                "processes": self.accelerator.num_processes,
                "best": self.best,
                "skipped": self.skipped,
            },
        )

    def _log(self, step: int, **values: Any) -> None:
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with (self.work.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")


def _keep_lines(work: StageFolder, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint."""
    metrics = work.folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    metrics.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))
