"""`deit`: distillation through a token (DeiT; Touvron et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.terms import CE, KL, LOSS, Terms, cross_entropy, kd_divergence
from trainable.errors import ConfigError, input_error
from trainable.networks.blocks import BlockNetwork
from trainable.networks.heads import DistilledHead
from trainable.networks.teacher import TeacherOutputs


class DeiT:
    """The class token learns the label, the distillation token the teacher; both from one forward.

    Hard (eq. 3): L = (1 − α)·CE(class, y) + α·CE(distillation, argmax teacher); the source has α = 0.5.
    Soft (eq. 2): L = (1 − α)·CE(class, y) + α·T²·KL(teacher ‖ distillation).
    CE is of the class token and KL of the distillation token; hard distillation tells KL and does not minimise it.

    Raises:
        ConfigError: The student's head has no distillation token.
    """

    def __init__(self, config: DistillConfig, student: BlockNetwork) -> None:
        if config.alpha is None:
            raise ValueError("alpha must be set")
        self._alpha, self._hard, self._temperature = config.alpha, config.hard, config.temperature
        _head(student)

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        logits, distilled = _head(student).both(student.embed(images))
        ce = cross_entropy(student.with_margin(logits, labels), labels)
        if self._hard:
            term = cross_entropy(distilled, teacher.logits.argmax(1))
            kl = kd_divergence(distilled.detach(), teacher.logits, self._temperature)
        else:
            term = kl = kd_divergence(distilled, teacher.logits, self._temperature)
        return {LOSS: (1.0 - self._alpha) * ce + self._alpha * term, CE: ce, KL: kl}


def _head(student: BlockNetwork) -> DistilledHead:
    head = student.head
    if isinstance(head, DistilledHead):
        return head
    rule = "deit needs a vision transformer with a distillation token"
    remedy = "choose one, e.g. vit_t16, or another distill.method"
    raise input_error(ConfigError, "student.model", rule, remedy, type(head).__name__)
