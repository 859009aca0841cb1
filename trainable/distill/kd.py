"""`kd`: vanilla knowledge distillation (Hinton et al. 2015; StableKD, eq. 3)."""

from __future__ import annotations

from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.terms import CE, KL, LOSS, Terms, cross_entropy, kd_divergence
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs


class LogitLoss:
    """(1 − α)·CE + α·T²·KL(teacher ‖ student), or CE + λ·T²·KL where `lam` is set (StableKD, eq. 8).

    A head's margin is in CE alone: KL compares what the networks say, and the teacher knows no margin.
    """

    def __init__(self, config: DistillConfig) -> None:
        self._ce_weight, self._kl_weight = _weights(config)
        self._temperature = config.temperature

    def __call__(
        self, student: BlockNetwork, logits: Tensor, labels: Tensor, teacher_logits: Tensor
    ) -> Terms:
        """The student's (batch, classes) plain logits, (batch,), (batch, classes) → LOSS, CE and KL."""
        ce = cross_entropy(student.with_margin(logits, labels), labels)
        kl = kd_divergence(logits, teacher_logits, self._temperature)
        return {LOSS: self._ce_weight * ce + self._kl_weight * kl, CE: ce, KL: kl}


def _weights(config: DistillConfig) -> tuple[float, float]:
    """Weights of CE and KL."""
    if config.alpha is not None and config.lam is None:
        return 1.0 - config.alpha, config.alpha
    if config.lam is not None and config.alpha is None:
        return 1.0, config.lam
    raise ValueError("exactly one of alpha and lam must be set")


class KD:
    """L = (1 − α)·CE + α·T²·KL(teacher ‖ student); α weighs the distillation term."""

    def __init__(self, config: DistillConfig) -> None:
        self._logit_loss = LogitLoss(config)

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        return self._logit_loss(student, student(images), labels, teacher.logits)
