"""Stage `train`: the student learns the teacher's labels and its distribution over tokens.

    accelerate launch distill/train.py recipes/demo/recipe.yaml

B batch, S encoder positions, D width, L tokens, N valid tokens, V vocabulary.
"""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import WhisperForConditionalGeneration

from data_prep.features import LogMel
from data_prep.quality import kept_labels
from distill import encoder_cache
from distill.batches import Batch, Collate, Order, training_batches, validation_batches
from distill.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from distill.examples import IGNORE, Drawing, predecessors
from distill.losses import Loss, distillation_loss
from distill.student import save_model
from eval.metrics import error_rate, normalizer
from eval.runtimes.torch import TorchRuntime, load_model
from eval.runtimes.transcriber import Format, Transcriber
from eval.utterances import read_utterances
from recipes.errors import RunError, UserError, run_main
from recipes.models import model_folder
from recipes.schema import Recipe
from recipes.sections import Train
from recipes.stage import Work, arguments, open_stage


def main() -> None:
    """Load, resume, step, validate, keep the best."""
    recipe, command = arguments("train")
    if (section := recipe.train) is None:
        raise UserError("train: the recipe has no train section; add `train: {}` for its defaults")
    accelerator = Accelerator(mixed_precision=section.precision)
    main_process = accelerator.is_main_process
    with open_stage(recipe, "train", command, main=main_process, wait=accelerator.wait_for_everyone) as work:
        # 1. Student, teacher, labels.
        trainer = Trainer(recipe, section, accelerator, work)
        # 2. Where a killed run stood.
        first_step = trainer.resume()
        # 3. The steps.
        trainer.run(first_step)
        # 4. The best student becomes the result.
        if main_process:
            trainer.finish()


class StudentLogits(torch.nn.Module):
    """The student's forward pass as one module, so that DDP and FSDP can wrap it; logits of valid tokens only."""

    def __init__(self, student: WhisperForConditionalGeneration, freeze_encoder: bool):
        super().__init__()
        self.student, self.freeze_encoder = student, freeze_encoder

    def encode(self, mel_BFT: torch.Tensor) -> torch.Tensor:
        """Encoder states [B, S, D], without gradient where the encoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            return self.student.model.encoder(mel_BFT).last_hidden_state

    def forward(self, mel_BFT: torch.Tensor | None, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, V] of the predicted tokens, and the encoder states for a teacher that shares the encoder."""
        encoder_BSD = batch.encoder_BSD
        if encoder_BSD is None:
            assert mel_BFT is not None
            encoder_BSD = self.encode(mel_BFT)
        return valid_logits(self.student, encoder_BSD, batch), encoder_BSD


def valid_logits(model: WhisperForConditionalGeneration, encoder_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Decoder over the whole sequence, prompt included; LM head over the N valid tokens alone: [N, V]."""
    hidden_BLD = model.model.decoder(
        input_ids=batch.inputs_BL, encoder_hidden_states=encoder_BSD, use_cache=False
    ).last_hidden_state
    return model.proj_out(hidden_BLD[batch.labels_BL != IGNORE])


class Trainer:
    """One distillation run on one process of possibly many."""

    def __init__(self, recipe: Recipe, section: Train, accelerator: Accelerator, work: Work):
        self.recipe, self.section, self.accelerator, self.work = recipe, section, accelerator, work
        self.folder = recipe.root / "student" / "model"
        self.student = load_model(self.folder)
        self.student.model.encoder.requires_grad_(not section.freeze_encoder)
        self.format = Format.load(self.folder, recipe.teacher.language, recipe.teacher.task)
        self.collate = Collate(self.format.window_samples, self.format.end)
        self.log_mel = LogMel(self.format.mel_bins).to(accelerator.device)
        labels = kept_labels(recipe.root)
        self.train_labels = [label for label in labels if label.split == "train"]
        self.validation_labels = [label for label in labels if label.split == "validation"]
        every = max(1, -(-len(self.validation_labels) // section.validation_utterances))
        self.validation_labels = self.validation_labels[::every]  # all lengths: labels stand longest first
        for split, rows in (("train", self.train_labels), ("validation", self.validation_labels)):
            if not rows:
                raise UserError(
                    f"train: expected kept labels in the {split} split of {recipe.root / 'labels'}, found none"
                )
        self.teacher = self._load_teacher() if section.kl_weight > 0 else None
        self.normalize = normalizer("basic", self.folder)
        trainable = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=section.learning_rate, weight_decay=section.weight_decay)
        self.model, self.optimizer = accelerator.prepare(StudentLogits(self.student, section.freeze_encoder), optimizer)
        self.best: dict[str, float] = {}

    def _load_teacher(self) -> WhisperForConditionalGeneration:
        teacher = load_model(model_folder(self.recipe.teacher.model)).requires_grad_(False)
        if self.section.freeze_encoder:  # the student's encoder is a copy of the teacher's and stays so: keep one
            teacher.model.encoder = self.student.model.encoder
        return teacher.to(self.accelerator.device)

    def resume(self) -> int:
        """Load the newest checkpoint; the step to go on from."""
        checkpoint = latest_checkpoint(self.work.folder / "checkpoints")
        if checkpoint is None:
            return 0
        state = load_checkpoint(checkpoint, self.student, self.optimizer)
        self.best = state["best"]
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:
            tqdm.write(f"train: going on from step {state['step']}")
            _keep_lines(self.work.folder / "metrics.jsonl", state["step"])
        return int(state["step"])

    def run(self, first_step: int) -> None:
        """Optimise from first_step to the recipe's last."""
        section, accelerator = self.section, self.accelerator
        collate = self.collate
        if section.cache_encoder and first_step < section.steps:
            cache = encoder_cache.build(
                self.work.folder / "encoder_states.npy", self.train_labels, collate, self.encode,
                batch_size=section.batch_size, rank=accelerator.process_index, world=accelerator.num_processes,
                wait=accelerator.wait_for_everyone,
            )  # fmt: skip
            collate = replace(collate, states=cache)
        order = Order(self.train_labels, section.batch_size, self.recipe.seed, section.source_weights)
        drawing = Drawing(
            section.timestamps, section.previous_text, self.format.start_of_previous, self.format.max_length,
            self.recipe.seed,
        )  # fmt: skip
        before = predecessors(self.train_labels, read_utterances(self.recipe.root / "corpus", "train"))
        batches = training_batches(
            order, drawing, before, collate, first_step=first_step, last_step=section.steps,
            rank=accelerator.process_index, world=accelerator.num_processes, workers=section.workers,
        )  # fmt: skip
        bar = tqdm(initial=first_step, total=section.steps, desc="train", disable=not accelerator.is_main_process)
        for step, batch in enumerate(batches, first_step + 1):
            self.step(step, batch)
            if step % section.eval_steps == 0 or step == section.steps:
                self.validate(step)
            if step % section.save_steps == 0 or step == section.steps:
                self.save(step)
            bar.set_postfix(wer=self.best.get("wer"), refresh=False)
            bar.update()
        bar.close()

    def step(self, step: int, batch: Batch) -> None:
        """One optimiser step; the loss is the mean over the valid tokens of all processes."""
        started = time.perf_counter()
        section, accelerator = self.section, self.accelerator
        # Dropout is drawn from the step and process alone, so a resumed run draws what an uninterrupted one does.
        set_seed(self.recipe.seed * 1_000_003 + step * 1_009 + accelerator.process_index)
        self.model.train()
        self.student.model.encoder.train(not section.freeze_encoder)
        rate = section.learning_rate * schedule(step, section.warmup_steps, section.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = batch.to(accelerator.device)
        tokens = accelerator.reduce((batch.labels_BL != IGNORE).sum(), "sum")
        with accelerator.autocast():
            loss = self.loss(self.model, batch)
        # DDP averages gradients over processes: times their number, this is the sum over all tokens / token count.
        accelerator.backward(loss.total * accelerator.num_processes / tokens)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), section.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        total, ce, kl = (float(accelerator.reduce(part.detach(), "sum") / tokens) for part in vars(loss).values())
        if total != total or total in (float("inf"), float("-inf")):
            raise RunError(f"train: loss {total} at step {step}; utterances {', '.join(batch.ids)}")
        self._log(
            step=step, loss=total, ce=ce, kl=kl, learning_rate=rate, grad_norm=float(norm or 0.0), tokens=int(tokens),
            seconds=round(time.perf_counter() - started, 4),
        )  # fmt: skip

    @torch.no_grad()
    def encode(self, batch: Batch) -> torch.Tensor:
        """The frozen encoder's states [B, S, D] of a batch of audio."""
        self.student.model.encoder.eval()
        with self.accelerator.autocast():
            mel_BFT = self.log_mel(batch.samples_BN.to(self.accelerator.device))
            return self.student.model.encoder(mel_BFT).last_hidden_state

    def loss(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """The distillation loss of one batch, summed over its valid tokens; `model` is a StudentLogits or wraps one."""
        mel_BFT = self.log_mel(batch.samples_BN) if batch.encoder_BSD is None else None
        student_NV, encoder_BSD = model(mel_BFT, batch)
        teacher_NV = None
        if self.teacher is not None:
            with torch.no_grad():
                if not self.section.freeze_encoder:
                    encoder_BSD = self.teacher.model.encoder(mel_BFT).last_hidden_state
                teacher_NV = valid_logits(self.teacher, encoder_BSD, batch)
        labels_N = batch.labels_BL[batch.labels_BL != IGNORE]
        return distillation_loss(
            student_NV, labels_N, teacher_NV, ce_weight=self.section.ce_weight, kl_weight=self.section.kl_weight,
            temperature=self.section.temperature,
        )  # fmt: skip

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Loss and WER of the validation labels on the main process; a better student is kept."""
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model).eval()
            total, tokens, texts = 0.0, 0, []
            transcriber = Transcriber(
                TorchRuntime(self.student, self.accelerator.device), self.folder,
                self.recipe.teacher.language, self.recipe.teacher.task,
            )  # fmt: skip
            for batch in validation_batches(self.validation_labels, self.collate, batch_size=self.section.batch_size):
                batch = batch.to(self.accelerator.device)
                total += float(self.loss(model, batch).total)
                tokens += int((batch.labels_BL != IGNORE).sum())
                mel_BFT = self.log_mel(batch.samples_BN)
                texts += [transcript.text for transcript in transcriber.decode(mel_BFT.cpu().numpy())]
            references = [self.normalize(label.reference or label.text) for label in self.validation_labels]
            wer = error_rate(references, [self.normalize(text) for text in texts])
            result = {"step": step, "wer": wer, "loss": total / tokens}
            self._log(step=step, validation_loss=result["loss"], validation_wer=wer)
            if not self.best or (wer, result["loss"]) < (self.best["wer"], self.best["loss"]):
                self.best = result
                save_model(self.student, self.work.folder / "model", processors=self.folder)
        self.accelerator.wait_for_everyone()

    def save(self, step: int) -> None:
        """Write a checkpoint from which `resume` goes on as if nothing had happened."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            extra = {"best": self.best, "scaler": scaler.state_dict() if scaler is not None else None}
            weights = {name: weight for name, weight in self.student.state_dict().items() if name != "proj_out.weight"}
            save_checkpoint(self.work.folder / "checkpoints", step, weights, self.optimizer, extra)
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Leave the best student and the metrics in the stage folder."""
        if not self.best:  # no steps: the student as it was cut
            save_model(self.student, self.work.folder / "model", processors=self.folder)
        shutil.rmtree(self.work.folder / "checkpoints", ignore_errors=True)
        (self.work.folder / "encoder_states.npy").unlink(missing_ok=True)
        self.work.finish(
            counts={"train": len(self.train_labels), "validation": len(self.validation_labels)},
            metrics={"steps": self.section.steps, "best": self.best},
        )

    def _log(self, **values: Any) -> None:
        if self.accelerator.is_main_process:
            with (self.work.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(values) + "\n")


def schedule(step: int, warmup_steps: int, steps: int) -> float:
    """Factor on the learning rate at a step counted from 1: linear up, then linear down to zero after the last."""
    if step <= warmup_steps:
        return step / warmup_steps
    return (steps - step + 1) / max(1, steps - warmup_steps)


def _keep_lines(metrics: Path, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    metrics.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))


if __name__ == "__main__":
    run_main(main)
