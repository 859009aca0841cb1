"""The module with all that is trained: pictures, labels and the teacher's outputs → named loss terms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from trainable.config import DistillConfig
from trainable.distill.at import AttentionTransfer
from trainable.distill.deit import DeiT
from trainable.distill.dkd import DKD
from trainable.distill.kd import KD
from trainable.distill.kd_mse import KDWithFeatures
from trainable.distill.maps import FeatureShapes
from trainable.distill.mse import MSE
from trainable.distill.nst import NeuronSelectivity
from trainable.distill.plain import Plain
from trainable.distill.reviewkd import ReviewKD
from trainable.distill.sobolev import Sobolev
from trainable.distill.stablekd import StableKD
from trainable.distill.terms import Terms
from trainable.networks.blocks import BlockNetwork
from trainable.plan import Group

METHOD = "method"
"""Name of the block of a method's own parameters, beside the student's blocks."""


class Method(Protocol):
    """One student forward → its loss terms, each a sum over samples.

    `teacher` is a TeacherOutputs, or None for a method that needs no teacher. A method that trains parameters
    of its own is an nn.Module.
    """

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: Any
    ) -> Terms: ...


def method_of(
    config: DistillConfig,
    student: BlockNetwork,
    groups: Sequence[Group],
    shapes: FeatureShapes | None = None,
) -> Method:
    """The method that the config names, with fresh weights from torch's global generator if it has any.

    `groups` are those of the first stage; `shapes` are needed where `METHODS` says that maps are compared.

    Raises:
        ConfigError: The method cannot be had with these networks.
    """
    match config.method:
        case "none":
            return Plain()
        case "kd":
            return KD(config)
        case "mse":
            return MSE(config, student.names[:-1])
        case "kd_mse":
            return KDWithFeatures(config, student.names[:-1])
        case "at":
            return AttentionTransfer(config, shapes)
        case "sobolev":
            return Sobolev(config)
        case "nst":
            return NeuronSelectivity(config, shapes)
        case "reviewkd":
            return ReviewKD(config, shapes)
        case "dkd":
            return DKD(config)
        case "deit":
            return DeiT(config, student)
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

    def block_parameters(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Name and parameters of each of the student's blocks, then of the method, if it has any."""
        yield from self.student.block_parameters()
        if isinstance(self.method, nn.Module):
            yield METHOD, list(self.method.parameters())

    def names_of(self, parameters: Iterable[nn.Parameter]) -> list[str]:
        """Names of parameters as in the student's weights; of a method's own, with `method.` before them."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        found = (names[id(parameter)].removeprefix("student.") for parameter in parameters)
        return [name.removeprefix("network.") for name in found]

    def method_state(self) -> dict[str, Any]:
        """The method's own parameters and buffers."""
        return self.method.state_dict() if isinstance(self.method, nn.Module) else {}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `method_state` gave."""
        if isinstance(self.method, nn.Module):
            self.method.load_state_dict(state)
