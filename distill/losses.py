"""Knowledge-distillation losses over gathered tokens.

N valid tokens (those to be predicted; prompt and padding are left out before the LM head), V vocabulary.

With student logits s and teacher logits t of one token, label y and temperature T,

    CE = -log softmax(s)[y]
    KL = sum_v p_v (log p_v - log q_v),  p = softmax(t / T),  q = softmax(s / T)
    loss = ce_weight * CE + kl_weight * T^2 * KL

The gradient of KL to s is (q - p) / T: the factor T^2 (Hinton et al. 2015, arXiv 1503.02531, section 2.1) keeps its
size next to the CE's when T changes, since q - p itself shrinks as 1 / T.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Loss:
    """Sums over the valid tokens, so that processes and steps add up; divide by the token count for means."""

    total: torch.Tensor
    ce: torch.Tensor
    kl: torch.Tensor


def distillation_loss(
    student_NV: torch.Tensor,
    labels_N: torch.Tensor,
    teacher_NV: torch.Tensor | None,
    *,
    ce_weight: float,
    kl_weight: float,
    temperature: float,
) -> Loss:
    """Summed loss of N tokens; `total` carries the gradient. Without teacher logits the KL is zero.

    Softmaxes are taken in float32 whatever the logits' type.
    """
    student_NV = student_NV.float()
    ce = F.cross_entropy(student_NV, labels_N, reduction="sum")
    kl = torch.zeros_like(ce)
    if teacher_NV is not None:
        log_q_NV = F.log_softmax(student_NV / temperature, dim=-1)
        log_p_NV = F.log_softmax(teacher_NV.float() / temperature, dim=-1)
        kl = F.kl_div(log_q_NV, log_p_NV, reduction="sum", log_target=True)
    return Loss(ce_weight * ce + kl_weight * temperature**2 * kl, ce.detach(), kl.detach())


def stored_kl(
    student_NV: torch.Tensor, ids_NK: torch.Tensor, logits_NK: torch.Tensor, rest_N: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(teacher || student), summed over N tokens, from the K largest teacher logits and the rest's log-sum-exp.

    All tokens beyond the K share one bucket, of mass exp(rest) for the teacher and the sum of q for the student:

        KL_K = sum_{v in K} p_v (log p_v - log q_v) + p_rest (log p_rest - log q_rest)

    Merging outcomes never raises a divergence (the data-processing inequality), so KL_K <= KL, with equality when
    the student spreads the bucket as the teacher does, and always at K = V, where rest is -inf.
    """
    log_q_NV = F.log_softmax(student_NV.float() / temperature, dim=-1)
    log_q_NK = log_q_NV.gather(1, ids_NK)
    log_q_rest_N = log_q_NV.scatter(1, ids_NK, -torch.inf).logsumexp(dim=1)
    log_p_NB = F.log_softmax(torch.cat([logits_NK.float() / temperature, rest_N[:, None].float()], dim=1), dim=1)
    kl = (log_p_NB[:, :-1].exp() * (log_p_NB[:, :-1] - log_q_NK)).sum()
    some = log_p_NB[:, -1] > -torch.inf
    log_p_rest_N = log_p_NB[some, -1]
    return kl + (log_p_rest_N.exp() * (log_p_rest_N - log_q_rest_N[some])).sum()
