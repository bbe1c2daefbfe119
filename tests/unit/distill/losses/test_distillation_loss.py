"""Loss and gradient against a naive formulation of padded sequences in float64, differentiated by autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.labels.token_generation import top_k_with_tail
from distill.data.examples import IGNORED_LABEL
from distill.losses import distillation_loss as distillation_loss_module
from distill.losses.distillation_loss import (
    LossWeights,
    StoredDistribution,
    TeacherSignal,
    distillation_loss,
    lm_head_loss,
)


def naive(
    student_BLV: torch.Tensor, teacher_BLV: torch.Tensor, labels_BL: torch.Tensor, weights: LossWeights, stored: int
) -> torch.Tensor:
    """Return the loss by its definition, token by token, skipping padded positions."""
    total = torch.zeros((), dtype=torch.float64)
    for student_LV, teacher_LV, labels_L in zip(student_BLV, teacher_BLV, labels_BL, strict=True):
        for student_V, teacher_V, label in zip(student_LV, teacher_LV, labels_L, strict=True):
            if label == IGNORED_LABEL:
                continue
            q_V = torch.exp(student_V) / torch.exp(student_V).sum()
            total = total - weights.ce * torch.log(q_V[label])
            p_V, q_V = (
                torch.exp(logits_V / weights.temperature) / torch.exp(logits_V / weights.temperature).sum()
                for logits_V in (teacher_V, student_V)
            )
            largest = teacher_V.argsort(descending=True)[:stored]
            others = teacher_V.argsort(descending=True)[stored:]
            pairs = [(p_V[token], q_V[token]) for token in largest]
            if len(others):
                pairs.append((p_V[others].sum(), q_V[others].sum()))
            for p, q in pairs:
                total = total + weights.kl * weights.temperature**2 * p * (torch.log(p) - torch.log(q))
    return total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), batch=st.integers(1, 3), length=st.integers(1, 5), vocabulary=st.integers(2, 9),
    ce=st.floats(0, 2), kl=st.floats(0, 2), temperature=st.floats(0.5, 4), stored=st.integers(1, 9),
    live=st.booleans(), chunk=st.integers(1, 40), double=st.booleans(),
)  # fmt: skip
def test_value_and_gradients_equal_the_naive_formulation(
    seed: int, batch: int, length: int, vocabulary: int, ce: float, kl: float, temperature: float, stored: int,
    live: bool, chunk: int, double: bool,
) -> None:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, 4, generator=draw).double().requires_grad_()
    head = (2 * torch.randn(vocabulary, 4, generator=draw)).double().requires_grad_()
    teacher = (3 * torch.randn(batch, length, vocabulary, generator=draw)).double()
    labels = torch.randint(0, vocabulary, (batch, length), generator=draw)
    labels[torch.rand(batch, length, generator=draw) < 0.3] = IGNORED_LABEL
    valid, weights, stored = labels != IGNORED_LABEL, LossWeights(ce, kl, temperature), min(stored, vocabulary)
    expected = naive(hidden @ head.T, teacher, labels, weights, vocabulary if live else stored)
    expected_gradients = (
        torch.autograd.grad(expected, (hidden, head))
        if expected.requires_grad
        else (torch.zeros_like(hidden), torch.zeros_like(head))
    )
    dtype = torch.float64 if double else torch.float32
    teacher_NV = teacher[valid].to(dtype)
    ids, logits, tail = top_k_with_tail(teacher_NV, stored, temperature)
    signal = teacher_NV if live else StoredDistribution(ids, logits, tail)
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, head)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation_loss_module, "CHUNK_ELEMENTS", chunk)
        sums = lm_head_loss(inputs[0][valid], inputs[1], labels[valid], lambda rows: signal[rows], weights, scale=64.0)
    gradients = torch.autograd.grad(sums[0], inputs)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if double else {"rtol": 1e-4, "atol": 2e-4}
    torch.testing.assert_close(sums[0], expected.to(dtype), **tolerance)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient.to(dtype), **tolerance)


def test_equal_models_have_no_divergence() -> None:
    logits = 5 * torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    for teacher in (logits, StoredDistribution(*top_k_with_tail(logits, 3, 2.0))):
        (total, _, kl), gradient = distillation_loss(logits, torch.arange(7), teacher, LossWeights(0.0, 1.0, 2.0))
        assert abs(float(kl)) < 1e-5
        assert abs(float(total)) < 1e-4
        assert float(gradient.abs().max()) < 1e-5


def test_merging_the_tail_never_raises_the_divergence() -> None:
    draw = torch.Generator().manual_seed(1)
    student, teacher = (4 * torch.randn(50, 30, generator=draw) for _ in range(2))

    def kl(signal: TeacherSignal) -> float:
        return float(distillation_loss(student, torch.zeros(50, dtype=torch.long), signal, LossWeights(0, 1, 2))[0][2])

    divergences = [kl(StoredDistribution(*top_k_with_tail(teacher, k, 2.0))) for k in (1, 2, 4, 8, 16, 30)]
    assert divergences == sorted(divergences)
    assert abs(divergences[-1] - kl(teacher)) < 1e-4


def test_without_a_teacher_the_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(7, 11), torch.arange(7)
    (total, ce, kl), _ = distillation_loss(logits, labels, None, LossWeights(1.0, 1.0, 2.0))
    torch.testing.assert_close(total, torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    assert (total, float(kl)) == (ce, 0.0)


def test_a_vanishing_tail_gives_finite_numbers() -> None:
    teacher = torch.full((2, 6), -300.0).index_fill(1, torch.tensor([0, 1]), 10.0)
    student = torch.full((2, 6), -400.0).index_fill(1, torch.tensor([0]), 10.0)
    stored = StoredDistribution(*top_k_with_tail(teacher, 2, 2.0))
    sums, gradient = distillation_loss(student, torch.zeros(2, dtype=torch.long), stored, LossWeights(0.8, 1.0, 2.0))
    assert torch.isfinite(sums).all()
    assert torch.isfinite(gradient).all()
