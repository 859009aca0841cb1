"""Every method with networks that it can be had with, for the tests of all and of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainable.config import DistillConfig, TrialConfig
from trainable.distill.maps import feature_shapes
from trainable.distill.objective import Objective, method_of
from trainable.distill.terms import Terms
from trainable.methods import METHODS as TRAITS
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student
from trainable.networks.teacher import FrozenTeacher, TeacherOutputs
from trainable.networks.vit import CUTS, VisionTransformer
from trainable.plan import initial_groups

Batch = tuple[Tensor, Tensor]

MARGIN, SCALE = 0.35, 20.0
PICTURES = Pictures(classes=10, channels=3, image_size=(8, 8))
CONV, WIDER = "mini_resnet_10_4", "mini_resnet_10_8"

METHODS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "kd": {"method": "kd", "alpha": 0.3, "temperature": 2.0},
    "mse": {"method": "mse", "alpha": 0.3},
    "kd_mse": {"method": "kd_mse", "alpha": 0.3},
    "at": {"method": "at", "lam": 100.0},
    "sobolev": {"method": "sobolev", "alpha": 0.3, "lam": 2.0, "temperature": 2.0},
    "nst": {"method": "nst", "lam": 10.0},
    "reviewkd": {"method": "reviewkd", "lam": 2.0},
    "dkd": {"method": "dkd", "temperature": 2.0},
    "deit-hard": {"method": "deit", "alpha": 0.3, "temperature": 2.0},
    "deit-soft": {"method": "deit", "alpha": 0.3, "temperature": 2.0, "hard": False},
    "stablekd-5": {"method": "stablekd", "alpha": 0.3, "decomposition": "5/2"},
    "stablekd-3": {"method": "stablekd", "lam": 2.0, "decomposition": "3/0"},
    "stablekd-1": {"method": "stablekd", "alpha": 0.3, "decomposition": "1/0"},
}
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"name": "linear"},
    "am_softmax": {"name": "am_softmax", "margin": MARGIN, "scale": SCALE},
}


@dataclass(frozen=True)
class Case:
    """A method on its networks."""

    student: BlockNetwork
    teacher: FrozenTeacher
    module: Objective
    config: DistillConfig

    def ask(self, images: Tensor) -> TeacherOutputs:
        """The teacher, as the loop asks it."""
        if TRAITS[self.config.method].slope:
            return self.teacher.with_slope(images)
        return self.teacher(images)

    def terms(self, batch: Batch) -> Terms:
        return self.module(*batch, self.ask(batch[0]))

    def gradients(self, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
        """Of everything that is trained, the method's own parameters too."""
        self.module.zero_grad()
        loss().backward()
        found = {n: p.grad for n, p in self.module.named_parameters()}
        return {n: g.clone() for n, g in found.items() if g is not None}


def case(name: str, head: str = "linear") -> Case:
    """A method of `METHODS`, with a teacher of other widths where it takes one."""
    distill = METHODS[name]
    wider = TRAITS[distill["method"]].features != "equal"
    student = transformer(0) if distill["method"] == "deit" else conv(0, CONV, head)
    return case_of(student, FrozenTeacher(conv(1, WIDER if wider else CONV)), **distill)


def case_of(student: BlockNetwork, teacher: FrozenTeacher, **distill: Any) -> Case:
    config, shapes = DistillConfig.model_validate(distill), None
    if TRAITS[config.method].features == "maps":
        shapes = feature_shapes(student, teacher.blocks, PICTURES)
    k = int((config.decomposition or "1/0").partition("/")[0])
    groups = initial_groups(len(student), k)
    module = Objective(student, method_of(config, student, groups, shapes))
    return Case(student, teacher, module, config)


def conv(seed: int, model: str, head: str = "linear") -> BlockNetwork:
    """Five blocks, with BatchNorm."""
    torch.manual_seed(seed)
    tree = {"data": {"source": "digits"}, "student": {"model": model, "head": HEADS[head]}}
    return build_student(TrialConfig.model_validate(tree), PICTURES)


def transformer(seed: int, *, distilled: bool = True) -> BlockNetwork:
    """Five blocks, with a class token and, if so, a distillation token."""
    torch.manual_seed(seed)
    network = VisionTransformer(
        width=12,
        heads=2,
        depth=4,
        patch=4,
        image_size=(8, 8),
        classes=10,
        channels=3,
        distilled=distilled,
    )
    return BlockNetwork(network, CUTS)


def noise(seed: int = 2, size: int = 16) -> Batch:
    """Pictures and labels, a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 10, (size,), generator=generator)


def directions_of_logits(logits: Tensor) -> Tensor:
    """In place of `random_directions`: the same for a sample in whatever batch it comes."""
    return F.normalize(logits, dim=1)
