"""How far the KL from stored logits is from the live one, by the number of logits kept.

    python -m tests.bench.stored RECIPE [section.key=value ...]        one JSON line

The teacher labels the recipe's validation utterances with its whole vocabulary kept; each smaller k is cut from that.
The student is once as it was cut, far from the teacher, and once as it was trained. B batch, L tokens, V vocabulary.
"""

import json

import torch
from transformers import WhisperForConditionalGeneration

from data_prep.labels.batched_labelling import label_batch, length_sorted, read_ahead
from data_prep.labels.labelling_teacher import LabellingTeacher, top_k_with_tail
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

KEPT = (4, 8, 16, 32, 64, 128)


def logits(model: WhisperForConditionalGeneration, states_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of the predicted tokens, [N, V]."""
    objective = DistillationObjective(model, LossWeights(0.0, 1.0, 2.0), freeze_encoder=True)
    return model.proj_out(objective.decode(states_BSD, batch.inputs_BL)[batch.predicted])


@torch.inference_mode()
def main() -> None:
    """Sum both divergences over all tokens, print their means and differences in nats a token."""
    recipe, _ = parse_stage_arguments("train")
    assert recipe.train is not None
    temperature = recipe.train.temperature
    folder = resolve_model_folder(recipe.teacher.model)
    labels = LabelsSection(top_k=10**6, temperature=temperature, fallback=[])
    teacher = LabellingTeacher(folder, recipe.teacher, labels, torch.device("cpu"))
    collate = Collator(teacher.format.window_samples, teacher.format.end)
    students = {name: load_model(recipe.root / name / "model") for name in ("student", "train")}
    live, tokens = dict.fromkeys(students, 0.0), 0
    stored = {name: dict.fromkeys((*KEPT, teacher.top_k), 0.0) for name in students}
    mass = dict.fromkeys(KEPT, 0.0)
    for items, clips in read_ahead(length_sorted(read_utterances(recipe.root / "corpus", "validation"), 16)):
        batch = collate([Example(label, label.plain, []) for label in label_batch(teacher, items, clips)])
        states_BSD = teacher.encode([clip for clip in clips if not isinstance(clip, str)])
        teacher_NV = logits(teacher.model, states_BSD, batch)
        tokens += len(teacher_NV)
        kept = {k: StoredDistribution(*top_k_with_tail(teacher_NV, k, temperature)) for k in (*KEPT, teacher.top_k)}
        for k in KEPT:
            mass[k] += float((kept[k].rest_N - (teacher_NV / temperature).logsumexp(1)).exp().sum())
        for name, student in students.items():
            student_NV = logits(student, states_BSD, batch)
            live[name] += float(live_kl(student_NV, teacher_NV, temperature)[0])
            for k, distribution in kept.items():
                stored[name][k] += float(stored_kl(student_NV, distribution, temperature)[0])
    print(json.dumps({
        "bench": "stored", "recipe": recipe.name, "tokens": tokens, "temperature": temperature,
        "live_kl": {name: round(value / tokens, 6) for name, value in live.items()},
        "missing_kl": {
            name: {k: float(f"{(live[name] - value) / tokens:.3g}") for k, value in by_k.items()}
            for name, by_k in stored.items()
        },
        "tail_mass": {k: float(f"{value / tokens:.3g}") for k, value in mass.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    run_main(main)
