"""`none`: the student learns from the labels alone. L = CE."""

from __future__ import annotations

from torch import Tensor

from trainable.distill.terms import CE, LOSS, Terms, cross_entropy
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs


class Plain:
    """L = CE(student, labels)."""

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs | None
    ) -> Terms:
        del teacher
        ce = cross_entropy(student.with_margin(student(images), labels), labels)
        return {LOSS: ce, CE: ce}
