"""The module that DDP wraps: pictures, labels and the teacher's outputs → named loss terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from trainable.config import DistillConfig
from trainable.distill.kd import KD
from trainable.distill.kd_mse import KDWithFeatures
from trainable.distill.mse import MSE
from trainable.distill.plain import Plain
from trainable.distill.stablekd import StableKD
from trainable.distill.terms import Terms
from trainable.networks.blocks import BlockNetwork
from trainable.plan import Group


class Method(Protocol):
    """One student forward → its loss terms, each a sum over samples.

    `teacher` is a TeacherOutputs, or None for a method that needs no teacher.
    """

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: Any
    ) -> Terms: ...


def method_of(config: DistillConfig, student: BlockNetwork, groups: Sequence[Group]) -> Method:
    """The method that the config names; `groups` are those of the first stage."""
    match config.method:
        case "none":
            return Plain()
        case "kd":
            return KD(config)
        case "mse":
            return MSE(config, student.names[:-1])
        case "kd_mse":
            return KDWithFeatures(config, student.names[:-1])
        case "stablekd":
            return StableKD(config, groups)


class Objective(nn.Module):
    """The student with what it is trained by. One forward of this module is one student forward."""

    def __init__(self, student: BlockNetwork, method: Method) -> None:
        super().__init__()
        self.student = student
        self.method = method

    def forward(self, images: Tensor, labels: Tensor, teacher: Any) -> Terms:
        """(batch, channels, height, width) pictures, (batch,) labels, the teacher's outputs → loss terms."""
        return self.method(self.student, images, labels, teacher)

    def regroup(self, groups: Sequence[Group]) -> None:
        """Enter a stage: train these groups from now on."""
        if isinstance(self.method, StableKD):
            self.method.groups = tuple(groups)
