"""The gathered loss against the padded formulation, written naively in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.batches import IGNORE
from distill.losses import distillation_loss


def naive(
    student_BLV: torch.Tensor,
    teacher_BLV: torch.Tensor,
    labels_BL: torch.Tensor,
    ce: float,
    kl: float,
    temperature: float,
) -> torch.Tensor:
    """Token by token from the definition; padded positions are skipped one at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for student_LV, teacher_LV, labels_L in zip(student_BLV, teacher_BLV, labels_BL, strict=True):
        for student_V, teacher_V, label in zip(student_LV, teacher_LV, labels_L, strict=True):
            if label == IGNORE:
                continue
            q_V = torch.exp(student_V) / torch.exp(student_V).sum()
            total = total - ce * torch.log(q_V[label])
            p_V = torch.exp(teacher_V / temperature) / torch.exp(teacher_V / temperature).sum()
            q_V = torch.exp(student_V / temperature) / torch.exp(student_V / temperature).sum()
            total = total + kl * temperature**2 * (p_V * (torch.log(p_V) - torch.log(q_V))).sum()
    return total


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), batch=st.integers(1, 3), length=st.integers(1, 5), vocabulary=st.integers(2, 9),
    ce=st.floats(0, 2), kl=st.floats(0, 2), temperature=st.floats(0.5, 4),
)  # fmt: skip
def test_value_and_gradient_equal_the_naive_formulation(
    seed: int, batch: int, length: int, vocabulary: int, ce: float, kl: float, temperature: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    student = (3 * torch.randn(batch, length, vocabulary, generator=draw)).double().requires_grad_()
    teacher = (3 * torch.randn(batch, length, vocabulary, generator=draw)).double()
    labels = torch.randint(0, vocabulary, (batch, length), generator=draw)
    labels[torch.rand(batch, length, generator=draw) < 0.3] = IGNORE
    valid = labels != IGNORE
    loss = distillation_loss(
        student[valid], labels[valid], teacher[valid], ce_weight=ce, kl_weight=kl, temperature=temperature
    )
    expected = naive(student, teacher, labels, ce, kl, temperature)
    torch.testing.assert_close(loss.total.double(), expected, rtol=1e-5, atol=1e-4)
    (found,) = torch.autograd.grad(loss.total, student, retain_graph=True, allow_unused=False)
    (wanted,) = torch.autograd.grad(expected, student) if expected.requires_grad else (torch.zeros_like(student),)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_equal_models_have_no_divergence() -> None:
    logits = torch.randn(7, 11)
    loss = distillation_loss(logits, torch.arange(7), logits, ce_weight=0, kl_weight=1, temperature=2)
    assert abs(float(loss.kl)) < 1e-5
    assert abs(float(loss.total)) < 1e-4


def test_without_a_teacher_the_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(7, 11), torch.arange(7)
    loss = distillation_loss(logits, labels, None, ce_weight=1, kl_weight=1, temperature=2)
    torch.testing.assert_close(loss.total, torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
