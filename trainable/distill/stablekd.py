"""`stablekd`: block-wise distillation (StableKD, eq. 4 to 8, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.kd import LogitLoss
from trainable.distill.terms import Terms, feature_error, with_features
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs
from trainable.plan import Group


class StableKD:
    """Each group of student blocks learns from the teacher's features at the cuts around it.

    Group i gets the *teacher's* features at the cut before it. The last group's logits give
    CE + λ·T²·KL (or (1 − α)·CE + α·T²·KL), every other group's output Σ MSE against the teacher's
    features at the cut after it. No gradient crosses from one group to another. With one group and
    `alpha` this is `kd`, to the bit.
    """

    def __init__(self, config: DistillConfig, groups: Sequence[Group]) -> None:
        self._logit_loss = LogitLoss(config)
        self.groups = tuple(groups)
        """Replaced at a recomposition."""

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        inputs = (images, *teacher.features)
        *others, (start, stop) = self.groups
        # In the student's order: the backward pass then goes from its last parameter to its first, as ranks
        # exchange gradients.
        errors = [
            feature_error(student.run(inputs[first], first, after), inputs[after])
            for first, after in others
        ]
        logits = student.run(inputs[start], start, stop)
        terms = self._logit_loss(student, logits, labels, teacher.logits)
        return with_features(terms, errors)
