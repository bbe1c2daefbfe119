"""Knowledge-distillation losses over gathered tokens, with their gradients in closed form.

N valid tokens (those to be predicted; prompt and padding are left out before the LM head), V vocabulary, K stored
logits, D width.

With student logits s and teacher logits t of one token, label y and temperature T,

    CE = -log softmax(s)[y]
    KL = sum_v p_v (log p_v - log q_v),  p = softmax(t / T),  q = softmax(s / T)
    loss = ce_weight * CE + kl_weight * T^2 * KL

The factor T^2 (Hinton et al. 2015, arXiv 1503.02531, section 2.1) keeps the KL's gradient next to the CE's when T
changes. Since d(log q_v) / d(s_u) = ([u = v] - q_u) / T,

    d loss / d s_u = ce_weight * (softmax(s)_u - [u = y]) + kl_weight * T * (q_u - p_u)

**From stored logits.** Of the teacher's tokens the K largest are known, and of the rest their mass p_r alone. All
others share one bucket, in which the student has q_r, the sum of its q:

    KL_K = sum_{v in K} p_v (log p_v - log q_v) + p_r (log p_r - log q_r)

Merging outcomes never raises a divergence (the data-processing inequality), so KL_K <= KL, with equality when the
student spreads the bucket as the teacher does, and always at K = V. Its gradient is the one above with the teacher's
bucket spread as the student's own: p_u = p_r q_u / q_r for u outside K. The student is taught how much mass is out
there, and is left to spread it.

**In chunks.** The head's logits are the largest tensor of a step. `head_loss` makes them for some tokens at a time,
takes loss and gradient, and lets them go, so that nothing of size [N, V] ever exists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

CHUNK_ELEMENTS = 2**23
"""Logits alive at a time: 32 MB in float32."""


@dataclass(frozen=True)
class StoredDistribution:
    """The teacher's distribution as the label store keeps it (`data_prep.labels.label_store.Distribution`)."""

    ids_NK: torch.Tensor
    """int64."""
    logits_NK: torch.Tensor
    rest_N: torch.Tensor
    """Log-sum-exp of the other logits / T; -inf where there are none."""

    def __getitem__(self, rows: slice) -> "StoredDistribution":
        """The distribution of some of the tokens."""
        return StoredDistribution(self.ids_NK[rows], self.logits_NK[rows], self.rest_N[rows])


TeacherSignal = torch.Tensor | StoredDistribution | None
"""What the teacher says of N tokens: its logits [N, V], stored logits, or nothing."""


@dataclass(frozen=True)
class LossWeights:
    """The constants of the loss."""

    ce: float
    kl: float
    temperature: float
    ctc: float = 0.0
    """Of the auxiliary loss on the encoder (`distill.losses.ctc_loss`)."""
    hidden: float = 0.0
    """Of the mean squared error of the encoder's states against the teacher's."""


def distillation_loss(
    student_NV: torch.Tensor, labels_N: torch.Tensor, teacher: TeacherSignal, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums [3] of loss, CE and KL over N tokens, and the loss's gradient [N, V] to the student's logits.

    Softmaxes are taken in float32 whatever the logits' type; float64 stays. Without a teacher the KL is zero.
    """
    student_NV = _wide(student_NV)
    log_s_NV = student_NV.log_softmax(dim=1)
    ce = -log_s_NV.gather(1, labels_N[:, None]).sum()
    gradient_NV = log_s_NV.exp_()
    gradient_NV.scatter_add_(1, labels_N[:, None], -torch.ones_like(gradient_NV[:, :1]))
    gradient_NV *= weights.ce
    kl = torch.zeros_like(ce)
    if teacher is not None and weights.kl:
        divergence = stored_kl if isinstance(teacher, StoredDistribution) else live_kl
        kl, difference_NV = divergence(student_NV, teacher, weights.temperature)  # type: ignore[arg-type]
        gradient_NV.add_(difference_NV, alpha=weights.kl * weights.temperature)
    return torch.stack([weights.ce * ce + weights.kl * weights.temperature**2 * kl, ce, kl]), gradient_NV


def live_kl(
    student_NV: torch.Tensor, teacher_NV: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(teacher || student), summed over N tokens, and q - p [N, V], its gradient to the student's logits times T."""
    log_q_NV = (student_NV / temperature).log_softmax(dim=1)
    log_p_NV = (_wide(teacher_NV) / temperature).log_softmax(dim=1).to(student_NV.dtype)
    p_NV = log_p_NV.exp()
    kl = torch.dot(p_NV.flatten(), (log_p_NV - log_q_NV).flatten())
    return kl, log_q_NV.exp_().sub_(p_NV)


def stored_kl(
    student_NV: torch.Tensor, teacher: StoredDistribution, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL_K(teacher || student), summed over N tokens, and q - p [N, V], its gradient to student logits times T."""
    log_q_NV = (student_NV / temperature).log_softmax(dim=1)
    log_q_NK = log_q_NV.gather(1, teacher.ids_NK)
    buckets_NB = torch.cat([teacher.logits_NK / temperature, teacher.rest_N[:, None]], dim=1)
    log_p_NB = buckets_NB.to(student_NV.dtype).log_softmax(dim=1)
    log_p_NK, log_p_rest_N = log_p_NB[:, :-1], log_p_NB[:, -1]
    # Summed over the others themselves: 1 - sum of the K would drown a small tail in rounding.
    q_NV = log_q_NV.exp_()
    q_NK = q_NV.gather(1, teacher.ids_NK)
    q_rest_N = q_NV.scatter(1, teacher.ids_NK, 0.0).sum(dim=1).clamp_min(torch.finfo(q_NV.dtype).tiny)
    p_NK, p_rest_N = log_p_NK.exp(), log_p_rest_N.exp()
    rest_N = torch.where(p_rest_N > 0, p_rest_N * (log_p_rest_N - q_rest_N.log()), 0.0)
    kl = (p_NK * (log_p_NK - log_q_NK)).sum() + rest_N.sum()
    difference_NV = q_NV.mul_((1 - p_rest_N / q_rest_N)[:, None]).scatter_(1, teacher.ids_NK, q_NK - p_NK)
    return kl, difference_NV


def lm_head_loss(
    hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor,
    teaching: Callable[[slice], TeacherSignal], weights: LossWeights, *, scale: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Sums [3] of loss, CE and KL of the LM head over hidden states, never holding logits of all tokens.

    `teaching` gives what the teacher says of a slice of the tokens. The first sum carries the gradient; the other two
    are for the log. `scale` is the loss scale of fp16 training: gradients pass through the head multiplied by it.
    """
    sums: torch.Tensor = _HeadLoss.apply(hidden_ND, head_VD, labels_N, teaching, weights, scale)
    return sums


class _HeadLoss(torch.autograd.Function):
    """Loss and gradients in one pass over chunks, since the loss's gradient needs no later information."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor,
        teaching: Callable[[slice], TeacherSignal], weights: LossWeights, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        device = hidden_ND.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        cast_VD, total = head_VD.to(half), torch.zeros(3, dtype=_wide(hidden_ND[:0]).dtype, device=hidden_ND.device)
        ctx.scale = scale
        ctx.hidden_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        ctx.head_VD = torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None
        size = max(1, CHUNK_ELEMENTS // len(head_VD))
        for start in range(0, len(labels_N), size):
            rows = slice(start, start + size)
            chunk_CD = hidden_ND[rows].to(half)
            sums, gradient_CV = distillation_loss(chunk_CD @ cast_VD.T, labels_N[rows], teaching(rows), weights)
            total += sums
            if ctx.hidden_ND is not None or ctx.head_VD is not None:
                gradient_CV = gradient_CV.mul_(scale).to(half)
            if ctx.hidden_ND is not None:
                ctx.hidden_ND[rows] = gradient_CV @ cast_VD
            if ctx.head_VD is not None:
                if half == ctx.head_VD.dtype:
                    ctx.head_VD.addmm_(gradient_CV.T, chunk_CD)  # no second [V, D] beside it
                else:
                    ctx.head_VD += gradient_CV.T @ chunk_CD
        return total

    @staticmethod
    def backward(ctx: Any, outer_3: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The second and third sum are for the log: what is done with them changes no gradient.
        factor = outer_3[0] / ctx.scale
        gradients = (None if part is None else part.mul_(factor) for part in (ctx.hidden_ND, ctx.head_VD))
        return (*gradients, None, None, None, None)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()
