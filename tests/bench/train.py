"""Compare four formulations of a training step: speed and memory, on real audio at whisper-tiny's true shape.

    python -m tests.bench.train SPEECH VOCABULARY        one JSON line

    reference   as in Distil-Whisper's public training script: labels padded to 448 positions, a live teacher, float32
                softmaxes over the full vocabulary that are masked afterwards; both decoders share the frozen encoder
    live        this project with a live teacher: only valid tokens are gathered, LM head and loss work in chunks
    stored      this project with the 32 largest logits of each token stored; no teacher in memory
    cached      as `stored`, with the states of the frozen encoder read from memory

Each runs in a process of its own. Memory is the peak above the memory in use once weights, optimiser and data are
loaded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import WhisperForConditionalGeneration

from data_prep.labels.label_store import Decoding, Label
from data_prep.labels.token_generation import top_k_with_tail
from distill.data.examples import IGNORED_LABEL, Example
from distill.data.training_batches import Batch, Collator
from distill.losses.distillation_loss import LossWeights, StoredDistribution
from distill.models.cutting import cut_layers
from distill.models.random_weights import random_model
from distill.training.objective import DistillationObjective
from distill.training.teacher_outputs import LiveTeacher
from eval.runtimes.model_format import ModelFormat
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import run_main
from recipes.core.whisper_shape import WHISPER_SHAPES

VARIANTS = ("reference", "live", "stored", "cached")
WEIGHTS = LossWeights(0.8, 1.0, 2.0)
POSITIONS = 448


def load_batches(speech: Path, folder: Path, size: int, count: int) -> list[Batch]:
    """Return batches of AN4 training utterances, labelled with their own transcripts."""
    model_format = ModelFormat.load(folder, "en", "transcribe")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    labels = []
    rows = (speech / "an4" / "train" / "metadata.jsonl").read_text().splitlines()
    for row in map(json.loads, rows[: size * count]):
        tokens = [
            *model_format.prompt,
            *tokenizer.encode(f" {row['text'].lower()}", add_special_tokens=False).ids,
            model_format.end,
        ]
        plain = Decoding(row["text"], tokens, len(model_format.prompt), 0.0, 0.0, ended=True)
        audio = str(speech / "an4" / "train" / row["file_name"])
        labels.append(Label(row["file_name"], "an4", "train", [audio], 1.0, [], [], None, "en", None, plain))
    collate = Collator(model_format.window_samples, model_format.end)
    examples = [Example(label, label.plain, []) for label in labels]
    return [collate(examples[start : start + size]) for start in range(0, len(examples), size)]


def reference_loss(
    objective: DistillationObjective, teacher: WhisperForConditionalGeneration, batch: Batch
) -> torch.Tensor:
    """Return the mean loss over the predicted tokens, with every tensor at full length and full vocabulary."""
    pad = POSITIONS - batch.inputs_BL.shape[1]
    inputs_BL = F.pad(batch.inputs_BL, (0, pad), value=int(batch.inputs_BL.max()))
    labels_BL = F.pad(batch.labels_BL, (0, pad), value=IGNORED_LABEL)
    with torch.no_grad():
        encoder_BSD = objective.encode(objective.mel(batch))
        hidden = teacher.model.decoder(input_ids=inputs_BL, encoder_hidden_states=encoder_BSD, use_cache=False)
        teacher_BLV = teacher.proj_out(hidden.last_hidden_state)
    student_BLV = objective.student.proj_out(objective.decode(encoder_BSD, inputs_BL))
    ce = F.cross_entropy(student_BLV.flatten(0, 1), labels_BL.flatten(), ignore_index=IGNORED_LABEL)
    p_BLV = F.softmax(teacher_BLV / WEIGHTS.temperature, dim=-1)
    log_q_BLV = F.log_softmax(student_BLV / WEIGHTS.temperature, dim=-1)
    mask_BL = labels_BL >= 0
    kl = (F.kl_div(log_q_BLV, p_BLV, reduction="none").sum(dim=-1) * mask_BL).sum() / mask_BL.sum()
    return WEIGHTS.ce * ce + WEIGHTS.kl * WEIGHTS.temperature**2 * kl


@torch.no_grad()
def add_stored_inputs(
    batch: Batch, variant: str, objective: DistillationObjective, teacher: WhisperForConditionalGeneration
) -> Batch:
    """Return the batch with the stored logits and encoder states that its variant reads from disk in a real run."""
    if variant not in ("stored", "cached"):
        return batch
    encoder_BSD = objective.encode(objective.mel(batch))
    hidden = teacher.model.decoder(input_ids=batch.inputs_BL, encoder_hidden_states=encoder_BSD, use_cache=False)
    logits_NV = teacher.proj_out(hidden.last_hidden_state[batch.predicted])
    batch = replace(batch, stored=StoredDistribution(*top_k_with_tail(logits_NV, 32, WEIGHTS.temperature)))
    return replace(batch, encoder_BSD=encoder_BSD) if variant == "cached" else batch


def measure(variant: str, speech: Path, folder: Path, size: int, steps: int) -> dict[str, Any]:
    """Measure a variant: one warm-up step, then `steps` timed steps."""
    model = load_model(folder)
    student = cut_layers(model, [0, 1, 2, 3], [0, 3])
    student.model.encoder.requires_grad_(False)
    live = LiveTeacher(folder, student, torch.device("cpu"), frozen=True, quantize=None) if variant == "live" else None
    objective = DistillationObjective(student, WEIGHTS, freeze_encoder=True, teacher=live)
    optimizer = torch.optim.AdamW([parameter for parameter in student.parameters() if parameter.requires_grad], lr=1e-4)
    batches = [
        add_stored_inputs(batch, variant, objective, model) for batch in load_batches(speech, folder, size, steps + 1)
    ]
    if variant in ("live", "stored", "cached"):
        del model
    loss_of: Callable[[Batch], torch.Tensor] = (
        (lambda batch: reference_loss(objective, model, batch))
        if variant == "reference"
        else (lambda batch: objective(batch)[0] / batch.predicted.sum())
    )
    losses, loaded_bytes = [], 0.0
    for number, batch in enumerate(batches):
        if number == 1:
            started = time.perf_counter()
        if number == 0:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident memory
            loaded_bytes = psutil.Process().memory_info().rss
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    seconds = time.perf_counter() - started
    peak_kb = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    optimizer_bytes = 4 * 3 * sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return {
        "samples_per_s": round(size * steps / seconds, 3), "loss": losses,
        # Gradients and AdamW's moments are allocated in the first step and equal in all variants, so they are left out.
        "activations_mb": round((peak_kb * 1024 - loaded_bytes - optimizer_bytes) / 1e6, 1),
    }  # fmt: skip


def main() -> None:
    """Measure each variant in a fresh process and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--variant", choices=VARIANTS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args.variant, args.speech, args.vocabulary, args.batch, args.steps)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        random_model(WHISPER_SHAPES["tiny"], args.vocabulary, Path(scratch))
        numbers = ["--batch", str(args.batch), "--steps", str(args.steps)]
        rows = {}
        for variant in VARIANTS:
            command = [sys.executable, "-m", "tests.bench.train", str(args.speech), scratch, *numbers]
            completed = subprocess.run([*command, "--variant", variant], check=True, capture_output=True, text=True)
            rows[variant] = json.loads(completed.stdout.splitlines()[-1])
    reference = rows["reference"]
    ratios = {f"{name}_ratio": round(rows[name]["samples_per_s"] / reference["samples_per_s"], 2) for name in VARIANTS}
    differences = {
        f"{a} - {b}": float(f"{max(np.abs(np.subtract(rows[a]['loss'], rows[b]['loss']))):.2g}")
        for a, b in (("live", "reference"), ("cached", "stored"))
    }
    print(json.dumps({
        "bench": "train", **ratios,
        "memory_ratio": round(rows["stored"]["activations_mb"] / reference["activations_mb"], 4),
        "samples_per_s": {name: row["samples_per_s"] for name, row in rows.items()},
        "activations_mb": {name: row["activations_mb"] for name, row in rows.items()},
        "largest_loss_difference": differences, "batch_size": args.batch, "threads": torch.get_num_threads(),
        "shape": "whisper-tiny, 2 of 4 decoder layers, 30 s window, random weights, AN4",
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
