"""`dkd`: decoupled knowledge distillation (Zhao et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.terms import CE, KL, LOSS, Terms, cross_entropy, kd_divergence
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs


class DKD:
    """L = CE + T²·(α·TCKD + β·NCKD) (eq. 7), with α and β the `target_weight` and `nontarget_weight`.

    TCKD = KL(b_T ‖ b_S) of the label's probability against that of all other classes, NCKD = KL(q_T ‖ q_S) of the
    distributions over the other classes. KL = TCKD + (1 − p_T(label))·NCKD (eq. 5) is told, and not minimised.
    T² is that of the authors' code; its warm-up of the term is left out.
    """

    def __init__(self, config: DistillConfig) -> None:
        self._target, self._nontarget = config.target_weight, config.nontarget_weight
        self._temperature = config.temperature

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        logits = student(images)
        ce = cross_entropy(student.with_margin(logits, labels), labels)
        target, nontarget = decoupled(logits, teacher.logits, labels, self._temperature)
        return {
            LOSS: ce + self._target * target + self._nontarget * nontarget,
            CE: ce,
            KL: kd_divergence(logits.detach(), teacher.logits, self._temperature),
        }


def decoupled(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Σ over samples of T²·TCKD and of T²·NCKD, in nats; (batch, classes) twice, (batch,) → () each.

    In logits throughout: log p(label) − log p(others) is that of the label less the others' log Σ exp. So neither
    a probability that vanishes nor one that is 1 in fp32 makes anything infinite.
    """
    (label_s, others_s), (label_t, others_t) = (
        _split(logits.float() / temperature, labels) for logits in (student, teacher)
    )
    target = kd_divergence(_binary(label_s, others_s), _binary(label_t, others_t), 1.0)
    nontarget = kd_divergence(others_s, others_t, 1.0)
    return temperature**2 * target, temperature**2 * nontarget


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The label's logit (batch, 1), and those of the other classes (batch, classes − 1)."""
    label = labels.unsqueeze(1)
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, label), logits.gather(1, others + (others >= label))


def _binary(label: Tensor, others: Tensor) -> Tensor:
    """Logits of the label's class and of all others together, (batch, 2)."""
    return torch.cat([label, others.logsumexp(1, keepdim=True)], 1)
