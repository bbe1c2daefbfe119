"""Compare the KL divergence from stored logits with that from a live teacher, by the number of logits stored.

    python -m tests.bench.stored RECIPE [section.key=value ...]        one JSON line

The teacher labels the recipe's validation utterances and stores the logits of its whole vocabulary, from which each
smaller number of logits is taken. Two students are compared: the one that was only initialised, which is far from the
teacher, and the trained one.

B batch, L tokens, S encoder positions, D model width, N predicted tokens, V vocabulary.
"""

import json

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from data_prep.labels.batched_labelling import label_batch, length_sorted, read_ahead
from data_prep.labels.labelling_teacher import LabellingTeacher
from data_prep.labels.token_generation import top_k_with_tail
from distill.data.examples import Example
from distill.data.training_batches import Batch, Collator
from distill.losses.distillation_loss import LossWeights, StoredDistribution, live_kl, stored_kl
from distill.training.objective import DistillationObjective
from eval.audio.utterances import read_utterances
from eval.runtimes.torch_runtime import load_model
from recipes.core.errors import run_main
from recipes.core.model_folder import resolve_model_folder
from recipes.engine.stage_folder import parse_stage_arguments
from recipes.schema.labels_section import LabelsSection

STORED_LOGITS = (4, 8, 16, 32, 64, 128)


def predicted_logits(model: WhisperForConditionalGeneration, states_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the logits of the predicted tokens, [N, V]."""
    objective = DistillationObjective(model, LossWeights(0.0, 1.0, 2.0), freeze_encoder=True)
    return model.proj_out(objective.decode(states_BSD, batch.inputs_BL)[batch.predicted])


@torch.inference_mode()
def main() -> None:
    """Sum both divergences over all tokens and print their means and differences in nats per token."""
    recipe, _ = parse_stage_arguments("train")
    assert recipe.train is not None
    temperature = recipe.train.temperature
    folder = resolve_model_folder(recipe.teacher.model)
    labels = LabelsSection(top_k=10**6, temperature=temperature, fallback=[])
    teacher = LabellingTeacher(folder, recipe.teacher, labels, torch.device("cpu"))
    collate = Collator(teacher.format.window_samples, teacher.format.end)
    students = {name: load_model(recipe.root / name / "model") for name in ("student", "train")}
    live, tokens = dict.fromkeys(students, 0.0), 0
    stored = {name: dict.fromkeys((*STORED_LOGITS, teacher.top_k), 0.0) for name in students}
    tail_mass = dict.fromkeys(STORED_LOGITS, 0.0)
    for items, clips in read_ahead(length_sorted(read_utterances(recipe.root / "corpus", "validation"), 16)):
        batch = collate([Example(label, label.plain, []) for label in label_batch(teacher, items, clips)])
        states_BSD = teacher.encode([clip for clip in clips if isinstance(clip, np.ndarray)])
        teacher_NV = predicted_logits(teacher.model, states_BSD, batch)
        tokens += len(teacher_NV)
        distributions = {
            k: StoredDistribution(*top_k_with_tail(teacher_NV, k, temperature)) for k in (*STORED_LOGITS, teacher.top_k)
        }
        for k in STORED_LOGITS:
            tail_mass[k] += float((distributions[k].tail_N - (teacher_NV / temperature).logsumexp(1)).exp().sum())
        for name, student in students.items():
            student_NV = predicted_logits(student, states_BSD, batch)
            live[name] += float(live_kl(student_NV, teacher_NV, temperature)[0])
            for k, distribution in distributions.items():
                stored[name][k] += float(stored_kl(student_NV, distribution, temperature)[0])
    print(json.dumps({
        "bench": "stored", "recipe": recipe.name, "tokens": tokens, "temperature": temperature,
        "live_kl": {name: round(value / tokens, 6) for name, value in live.items()},
        "missing_kl": {
            name: {k: float(f"{(live[name] - value) / tokens:.3g}") for k, value in by_k.items()}
            for name, by_k in stored.items()
        },
        "tail_mass": {k: float(f"{value / tokens:.3g}") for k, value in tail_mass.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
