"""Which parameters are trained, whose encoder the teacher uses, and that no large tensor of logits is made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distill.data.examples import Example
from distill.data.training_batches import Batch, Collator
from distill.losses import distillation_loss as distillation_loss_module
from distill.losses.distillation_loss import LossWeights, TeacherSignal, distillation_loss
from distill.models.cutting import cut_layers
from distill.training.objective import DistillationObjective
from distill.training.teacher_outputs import LiveTeacher
from eval.runtimes.torch_runtime import load_model
from tests.conftest import TEACHER
from tests.unit.labels import decoding, label

WEIGHTS = LossWeights(0.8, 1.0, 2.0)


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16_000) / 7), 16_000)
    rows = [
        label("a", plain=decoding([257, 258, 260, 264, *range(60, 60 + n), 256], 4), audio=str(tmp_path / "a.wav"))
        for n in (3, 9)
    ]
    return Collator(7 * 16_000, 256)([Example(row, row.plain, []) for row in rows])


def live(student_layers: list[int], *, frozen: bool) -> tuple[DistillationObjective, LiveTeacher]:
    student = cut_layers(load_model(TEACHER), student_layers, [0, 3])
    student.model.encoder.requires_grad_(not frozen)
    teacher = LiveTeacher(TEACHER, student, torch.device("cpu"), frozen=frozen, quantize=None)
    return DistillationObjective(student, WEIGHTS, freeze_encoder=frozen, teacher=teacher), teacher


def test_a_cut_frozen_encoder_is_not_shared_with_the_teacher(batch: Batch) -> None:
    """The teacher must not silently use the states of the student's cut encoder."""
    whole = load_model(TEACHER)
    objective, teacher = live([0, 3], frozen=True)
    assert not teacher.shares_encoder
    assert len(teacher.model.model.encoder.layers) == 4
    mel_BFT = objective.mel(batch)
    with torch.no_grad():
        states_BSD = objective.teacher_states(batch, mel_BFT, objective.encode(mel_BFT))
        logits_NV = teacher(states_BSD, batch.inputs_BL, batch.predicted)(slice(None))
        expected = whole(input_features=mel_BFT, decoder_input_ids=batch.inputs_BL).logits[batch.predicted]
    torch.testing.assert_close(logits_NV, expected, atol=1e-4, rtol=1e-4)


def test_an_equal_frozen_encoder_is_shared_and_a_trained_one_never(batch: Batch) -> None:
    frozen, frozen_teacher = live([0, 1, 2, 3], frozen=True)
    trained, trained_teacher = live([0, 1, 2, 3], frozen=False)
    assert (frozen_teacher.shares_encoder, trained_teacher.shares_encoder) == (True, False)
    torch.testing.assert_close(frozen(batch), trained(batch), rtol=1e-5, atol=1e-5)


def test_only_the_student_is_wrapped_and_trained(batch: Batch) -> None:
    """The frozen teacher is no part of the objective, so that it is neither wrapped nor synchronised."""
    objective, teacher = live([0, 1, 2, 3], frozen=False)
    parameters = {id(parameter) for parameter in objective.parameters()}
    assert parameters == {id(parameter) for parameter in objective.student.parameters()}
    objective(batch)[0].backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(parameter.grad is not None for parameter in objective.student.parameters() if parameter.requires_grad)


def test_no_logits_of_padding_or_of_all_tokens_are_ever_made(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded positions are dropped before the LM head, not masked after a softmax over all of them."""
    chunk_sizes: list[int] = []

    def watched(
        student_NV: torch.Tensor, labels_N: torch.Tensor, teacher: TeacherSignal, weights: LossWeights
    ) -> object:
        chunk_sizes.append(len(student_NV))
        assert isinstance(teacher, torch.Tensor)
        assert len(teacher) == len(student_NV)
        return distillation_loss(student_NV, labels_N, teacher, weights)

    objective, _ = live([0, 1, 2, 3], frozen=True)
    whole = objective(batch)
    monkeypatch.setattr(distillation_loss_module, "distillation_loss", watched)
    monkeypatch.setattr(distillation_loss_module, "CHUNK_ELEMENTS", 5 * 586)
    torch.testing.assert_close(objective(batch), whole, rtol=1e-5, atol=1e-4)
    assert chunk_sizes == [5, 5, 4], "14 predicted tokens; 22 positions in the batch"


def test_the_hidden_state_loss_is_zero_for_the_teachers_encoder_and_pulls_another_towards_it(batch: Batch) -> None:
    weights = replace(WEIGHTS, ce=0.0, hidden=1.0)
    objective, teacher = live([0, 1, 2, 3], frozen=False)
    objective.weights = weights
    assert float(objective(batch)[4].detach()) == pytest.approx(0, abs=1e-8)
    with torch.no_grad():
        objective.student.model.encoder.layer_norm.bias += 0.5
    sums = objective(batch)
    assert float(sums[4].detach()) == pytest.approx(0.25 * int(batch.predicted.sum()), rel=1e-4)
    assert float(sums[0].detach()) == pytest.approx(float((4 * sums[2] + sums[4]).detach()), rel=1e-4)
    sums[0].backward()
    gradient = objective.student.model.encoder.layer_norm.bias.grad
    assert gradient is not None
    assert float(gradient.mean()) > 0
    assert objective.for_student(objective.student).weights.hidden == 0
    assert not teacher.shares_encoder
