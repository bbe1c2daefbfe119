"""How far the KL from stored logits is from the live one, by the number of logits kept.

    python -m tests.bench.stored RECIPE [section.key=value ...]        one JSON line

The teacher labels the recipe's validation utterances with its whole vocabulary kept; each smaller k is cut from that.
The student is once as it was cut, far from the teacher, and once as it was trained. B batch, L tokens, V vocabulary.
"""

import json

import torch

from data_prep.pseudo_label import label_batch, length_sorted, read_ahead
from data_prep.teacher import Teacher, split_tail
from distill.batches import Collate
from distill.examples import IGNORE, Example
from distill.losses import distillation_loss, stored_kl
from distill.train import valid_logits
from eval.runtimes.torch import load_model
from eval.utterances import read_utterances
from recipes.errors import run_main
from recipes.models import model_folder
from recipes.sections import Labels
from recipes.stage import arguments

KEPT = (4, 8, 16, 32, 64, 128)


@torch.inference_mode()
def main() -> None:
    """Sum both divergences over all tokens, print their means and differences in nats a token."""
    recipe, _ = arguments("train")
    assert recipe.train is not None
    temperature = recipe.train.temperature
    folder = model_folder(recipe.teacher.model)
    labels = Labels(top_k=10**6, temperature=temperature, fallback=[])
    teacher = Teacher(folder, recipe.teacher, labels, torch.device("cpu"))
    collate = Collate(teacher.format.window_samples, teacher.format.end)
    students = {name: load_model(recipe.root / name / "model") for name in ("student", "train")}
    live, tokens = dict.fromkeys(students, 0.0), 0
    stored = {name: dict.fromkeys((*KEPT, teacher.top_k), 0.0) for name in students}
    mass = dict.fromkeys(KEPT, 0.0)
    for items, clips in read_ahead(length_sorted(read_utterances(recipe.root / "corpus", "validation"), 16)):
        batch = collate([Example(label, label.plain, []) for label in label_batch(teacher, items, clips)])
        states_BSD = teacher.encode([clip for clip in clips if not isinstance(clip, str)])
        teacher_NV = valid_logits(teacher.model, states_BSD, batch)
        labels_N = batch.labels_BL[batch.labels_BL != IGNORE]
        tokens += len(labels_N)
        kept = {k: split_tail(teacher_NV, k, temperature) for k in (*KEPT, teacher.top_k)}
        for k in KEPT:
            rest_N = kept[k][2] - (teacher_NV / temperature).logsumexp(1)
            mass[k] += float(rest_N.exp().sum())
        for name, student in students.items():
            student_NV = valid_logits(student, states_BSD, batch)
            loss = distillation_loss(student_NV, labels_N, teacher_NV, ce_weight=0, kl_weight=1,
                                     temperature=temperature)  # fmt: skip
            live[name] += float(loss.kl)
            for k, (ids_NK, logits_NK, rest_N) in kept.items():
                stored[name][k] += float(stored_kl(student_NV, ids_NK, logits_NK, rest_N, temperature))
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
