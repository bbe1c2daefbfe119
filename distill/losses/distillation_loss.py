"""Knowledge-distillation loss over the predicted tokens of a batch, with its gradient in closed form.

N predicted tokens (prompt and padding are removed before the LM head), V vocabulary, K stored logits, B = K + 1
buckets, C tokens of a chunk, D width.

**Definition.** For one token with student logits s, teacher logits t, label y and temperature T,

    CE   = -log softmax(s)[y]
    KL   = sum_v p_v (log p_v - log q_v),    p = softmax(t / T),    q = softmax(s / T)
    loss = ce_weight * CE + kl_weight * T^2 * KL

The factor T^2 keeps the gradient of the KL term comparable to that of the CE term when T changes (Hinton et al. 2015,
arXiv 1503.02531, section 2.1).

**Gradient.** Since d(log q_v) / d(s_u) = ([u = v] - q_u) / T,

    d loss / d s_u = ce_weight * (softmax(s)_u - [u = y]) + kl_weight * T * (q_u - p_u)

**Stored logits.** A label store keeps the K largest teacher logits of each token, and of all other tokens only their
total probability p_r. These other tokens therefore share one bucket, to which the student gives the probability
q_r = sum_{v not in K} q_v:

    KL_K = sum_{v in K} p_v (log p_v - log q_v) + p_r (log p_r - log q_r)

Merging outcomes never increases a divergence (data-processing inequality), so KL_K <= KL. Both are equal if the student
distributes the bucket's probability over its tokens as the teacher does, and always for K = V. The gradient has the
form above, where the teacher's probability of a token outside K is the bucket's, distributed as the student does it:

    p_u = p_r * q_u / q_r    for u not in K

The student thus learns how much probability the bucket has, but not how to distribute it within the bucket.

**Memory.** The logits [N, V] would be the largest tensor of a training step. `lm_head_loss` therefore computes the
logits of one chunk of tokens at a time, takes their loss and gradient, and frees them. No tensor of shape [N, V] ever
exists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

CHUNK_ELEMENTS = 2**23
"""Logits in memory at a time; 32 MB in float32."""


@dataclass(frozen=True)
class StoredDistribution:
    """The teacher's distribution over the vocabulary, as read from a label store.

    It holds the tensors of `data_prep.labels.label_store.TokenDistribution`.
    """

    ids_NK: torch.Tensor
    """Token ids of the K largest logits, int64."""
    logits_NK: torch.Tensor
    """The K largest logits."""
    tail_N: torch.Tensor
    """Log-sum-exp of all other logits / T; -inf if there are no others."""

    def __getitem__(self, rows: slice) -> "StoredDistribution":
        """Return the distribution of the tokens `rows`."""
        return StoredDistribution(self.ids_NK[rows], self.logits_NK[rows], self.tail_N[rows])


TeacherSignal = torch.Tensor | StoredDistribution | None
"""The teacher's output for N tokens: its logits [N, V], a stored distribution, or None without a teacher."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms, and the temperature."""

    ce: float
    """Weight of the cross-entropy."""
    kl: float
    """Weight of T^2 * KL."""
    temperature: float
    """Softmax temperature T of the KL term."""
    ctc: float = 0.0
    """Weight of the auxiliary CTC loss (`distill.losses.ctc_loss`)."""
    hidden: float = 0.0
    """Weight of the mean squared error between the encoder states of student and teacher."""


def distillation_loss(
    student_NV: torch.Tensor, labels_N: torch.Tensor, teacher: TeacherSignal, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums [3] of loss, CE and KL over N tokens, and the gradient [N, V] of the loss.

    The gradient is with respect to the student's logits. Softmaxes are computed in float32, or in float64 if the logits
    are float64. Without a teacher the KL is zero.
    """
    student_NV = _at_least_float32(student_NV)
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
    """Return KL(teacher || student) summed over N tokens, and q - p [N, V].

    The latter is T times the gradient of the sum with respect to the student's logits.
    """
    log_q_NV = (student_NV / temperature).log_softmax(dim=1)
    log_p_NV = (_at_least_float32(teacher_NV) / temperature).log_softmax(dim=1).to(student_NV.dtype)
    p_NV = log_p_NV.exp()
    kl = torch.dot(p_NV.flatten(), (log_p_NV - log_q_NV).flatten())
    return kl, log_q_NV.exp_().sub_(p_NV)


def stored_kl(
    student_NV: torch.Tensor, teacher: StoredDistribution, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL_K(teacher || student) summed over N tokens, and q - p [N, V].

    The latter is T times the gradient of the sum with respect to the student's logits.
    """
    log_q_NV = (student_NV / temperature).log_softmax(dim=1)
    log_q_NK = log_q_NV.gather(1, teacher.ids_NK)
    buckets_NB = torch.cat([teacher.logits_NK / temperature, teacher.tail_N[:, None]], dim=1)
    log_p_NB = buckets_NB.to(student_NV.dtype).log_softmax(dim=1)
    log_p_NK, log_p_tail_N = log_p_NB[:, :-1], log_p_NB[:, -1]
    # The bucket's probability is summed directly: in 1 - (sum of the K), rounding would swamp a small value.
    q_NV = log_q_NV.exp_()
    q_NK = q_NV.gather(1, teacher.ids_NK)
    q_tail_N = q_NV.scatter(1, teacher.ids_NK, 0.0).sum(dim=1).clamp_min(torch.finfo(q_NV.dtype).tiny)
    p_NK, p_tail_N = log_p_NK.exp(), log_p_tail_N.exp()
    tail_N = torch.where(p_tail_N > 0, p_tail_N * (log_p_tail_N - q_tail_N.log()), 0.0)
    kl = (p_NK * (log_p_NK - log_q_NK)).sum() + tail_N.sum()
    difference_NV = q_NV.mul_((1 - p_tail_N / q_tail_N)[:, None]).scatter_(1, teacher.ids_NK, q_NK - p_NK)
    return kl, difference_NV


def lm_head_loss(
    hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor,
    teacher_signal: Callable[[slice], TeacherSignal], weights: LossWeights, *, scale: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Return the sums [3] of loss, CE and KL over N tokens without holding the logits of all tokens at once.

    Only the first sum carries a gradient; the other two are for logging.

    Args:
        hidden_ND: The decoder's last hidden states at the predicted tokens.
        head_VD: Weight of the LM head.
        labels_N: Token to predict at each position.
        teacher_signal: Returns the teacher's output for a slice of the tokens.
        weights: Weights of the loss terms, and the temperature.
        scale: Loss scale of fp16 training. Gradients are multiplied by it before they are cast to half precision, and
            divided by it in the backward pass.
    """
    sums: torch.Tensor = _HeadLoss.apply(hidden_ND, head_VD, labels_N, teacher_signal, weights, scale)
    return sums


class _HeadLoss(torch.autograd.Function):
    """Compute loss and gradients in one forward pass over chunks of tokens.

    This is possible because the gradient of the loss with respect to the logits needs nothing from the backward pass
    except a factor.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor,
        teacher_signal: Callable[[slice], TeacherSignal], weights: LossWeights, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        cast_VD = head_VD.to(dtype)
        total = torch.zeros(3, dtype=_at_least_float32(hidden_ND[:0]).dtype, device=hidden_ND.device)
        ctx.scale = scale
        ctx.hidden_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        ctx.head_VD = torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None
        chunk_size = max(1, CHUNK_ELEMENTS // len(head_VD))
        for start in range(0, len(labels_N), chunk_size):
            rows = slice(start, start + chunk_size)
            chunk_CD = hidden_ND[rows].to(dtype)
            sums, gradient_CV = distillation_loss(chunk_CD @ cast_VD.T, labels_N[rows], teacher_signal(rows), weights)
            total += sums
            if ctx.hidden_ND is not None or ctx.head_VD is not None:
                gradient_CV = gradient_CV.mul_(scale).to(dtype)
            if ctx.hidden_ND is not None:
                ctx.hidden_ND[rows] = gradient_CV @ cast_VD
            if ctx.head_VD is not None:
                if dtype == ctx.head_VD.dtype:
                    ctx.head_VD.addmm_(gradient_CV.T, chunk_CD)  # allocates no second [V, D]
                else:
                    ctx.head_VD += gradient_CV.T @ chunk_CD
        return total

    @staticmethod
    def backward(ctx: Any, gradient_3: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The second and third sum are for logging only: their gradients are ignored.
        factor = gradient_3[0] / ctx.scale
        gradients = (None if part is None else part.mul_(factor) for part in (ctx.hidden_ND, ctx.head_VD))
        return (*gradients, None, None, None, None)


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()
