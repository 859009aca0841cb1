"""`stablekd`: block-wise distillation (StableKD, eq. 4 to 8, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trainable.branches import Wait, branch
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
    features at the cut after it. No gradient crosses from one group to another, so on a GPU they are computed
    beside each other. With one group and `alpha` this is `kd`, to the bit.
    """

    def __init__(self, config: DistillConfig, groups: Sequence[Group]) -> None:
        self._logit_loss = LogitLoss(config)
        self.groups = tuple(groups)
        """Replaced at a recomposition."""

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        *others, (start, stop) = self.groups
        # In the student's order: the backward pass then goes from its last parameter to its first, as ranks
        # exchange gradients.
        errors: list[Tensor] = []
        waits: list[Wait] = []
        for first, after in others:
            with branch(f"group from block {first}") as wait:
                output = student.run(_input_of(first, images, teacher), first, after)
                errors.append(feature_error(output, teacher.features[after - 1]))
            waits.append(wait)
        logits = student.run(_input_of(start, images, teacher), start, stop)
        terms = self._logit_loss(student, logits, labels, teacher.logits)
        for wait in waits:
            wait()
        return with_features(terms, errors)


def _input_of(block: int, images: Tensor, teacher: TeacherOutputs) -> Tensor:
    """Pictures, or the teacher's features at the cut before a group that begins with a later block."""
    return teacher.features[block - 1] if block else images
