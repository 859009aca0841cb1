"""`mse`: labels, and the teacher's features at the cuts (FitNets' hints, Romero et al. 2015, at each cut)."""

from __future__ import annotations

from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.features import FeatureErrors
from trainable.distill.terms import CE, LOSS, Terms, cross_entropy, with_features
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs


class MSE:
    """L = (1 − α)·CE + α·Σ_l w_l·MSE(student_l, teacher_l) over the cuts l, from one forward."""

    def __init__(self, config: DistillConfig, cuts: tuple[str, ...]) -> None:
        if config.alpha is None:
            raise ValueError("alpha must be set")
        self._alpha = config.alpha
        self._errors = FeatureErrors(config, cuts)

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        *features, logits = student.features(images)
        ce = cross_entropy(student.with_margin(logits, labels), labels)
        terms = {LOSS: (1.0 - self._alpha) * ce, CE: ce}
        return with_features(terms, self._errors(features, teacher.features), self._alpha)
