"""`kd_mse`: KD with feature alignment at the cuts, end to end (StableKD, table 4)."""

from __future__ import annotations

from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.features import FeatureErrors
from trainable.distill.kd import LogitLoss
from trainable.distill.terms import Terms, with_features
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs


class KDWithFeatures:
    """L = (1 − α)·CE + α·T²·KL + Σ_l w_l·MSE(student_l, teacher_l) over the cuts l, from one forward."""

    def __init__(self, config: DistillConfig, cuts: tuple[str, ...]) -> None:
        self._logit_loss = LogitLoss(config)
        self._errors = FeatureErrors(config, cuts)

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        *features, logits = student.features(images)
        terms = self._logit_loss(student, logits, labels, teacher.logits)
        return with_features(terms, self._errors(features, teacher.features))
