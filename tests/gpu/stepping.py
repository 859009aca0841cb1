"""A step on a CUDA device, for the tests of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from trainable.config import BatchNormConfig, DistillConfig, OptimConfig, TrainConfig
from trainable.distill.objective import Objective, method_of
from trainable.engine.graph import Graphs
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import Step
from trainable.networks import weight_gradients
from trainable.networks.blocks import BlockNetwork
from trainable.networks.norms import with_norms
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.zoo import Pictures, build
from trainable.plan import initial_groups

CUDA = torch.device("cuda")
SIZE = 64
STABLE = {"method": "stablekd", "lam": 1.0, "decomposition": "5/2"}


CAPTURED = 3
"""Updates after which those of one kind are replayed."""
TOO_LARGE = 1e6
"""A finite picture times this is beyond fp16, which ends at 65504."""
LATE = 2_000_000
"""Cycles of a kernel that does nothing for about a millisecond."""


def network(seed: int, name: str = "mini_resnet_10_8", *, sync: bool = False) -> BlockNetwork:
    torch.manual_seed(seed)
    built = build(name, Pictures(10, 3, (16, 16)), path="student.model")
    norms = BatchNormConfig(sync=sync)
    return BlockNetwork(with_norms(built.network, norms, workers=2), built.cuts)


def pictures(device: torch.device = CUDA) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(SIZE, 3, 16, 16, generator=generator).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 10, (SIZE,), generator=generator).to(device)


class Setup:
    """A step with StableKD-5/2's first stage, or what `distill` says, on all the pictures."""

    def __init__(
        self,
        *,
        distill: dict[str, Any] | None = None,
        recompute: bool = False,
        sync: bool = False,
        graph: bool = False,
        device: torch.device = CUDA,
        **train: Any,
    ) -> None:
        """`graph` launches every update as the loop does, but for the augmentation."""
        config = DistillConfig.model_validate(distill or STABLE)
        self.student = network(0, sync=sync)
        self.student.recompute = recompute
        self.teacher = FrozenTeacher(network(1)).to(device)
        k = int((config.decomposition or "1/0").partition("/")[0])
        method = method_of(config, self.student, initial_groups(5, k))
        self.objective = Objective(self.student, method).to(device).train()
        self.objective.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(OptimConfig(lr=0.1), self.objective.parameters(), device)
        settings = TrainConfig.model_validate(train)
        self.micro_batches = settings.accumulate
        self.step = Step(self.objective, optimizer, settings, device, classes=10)
        self.images, self.labels = pictures(device)
        self.share = slice(0, SIZE)
        """This rank's."""
        self.number = 0
        self.graphs = Graphs(self.step.abandon) if graph else None

    def prepare(self, *, compiles: bool = False) -> None:
        """Have micro-batches of the usual size computed in the kernels that a trial has them in."""
        share = len(self.labels[self.share]) // self.micro_batches
        self.step.choose_kernels(compiles=compiles, own_norms=True)
        self.step.compile_for(share)

    def update(self, factor: float = 1.0) -> None:
        """As the loop has it, with the health check; `factor` is of the student's pictures alone."""
        images, labels = self.images[self.share], self.labels[self.share]
        inputs = (images, images * factor, labels)
        self.step.announce(0.05)
        if self.graphs is None:
            self._on_the_device(inputs)
        else:
            self.graphs.call(self.step.observes, self._on_the_device, inputs)
        self.step.count()
        self.number += 1
        self.step.health.check(f"update {self.number}")

    def _on_the_device(self, inputs: Sequence[Tensor]) -> None:
        parts = zip(*(tensor.tensor_split(self.micro_batches) for tensor in inputs), strict=True)
        for number, (images, own, labels) in enumerate(parts, start=1):
            with self.step.precision.forward():
                outputs = self.teacher(images)
            last = number == self.micro_batches
            self.step.accumulate(own, labels, outputs, update_size=SIZE, last=last)
        self.step.apply()

    @property
    def scale(self) -> float:
        return self.step.precision.scaler.get_scale()

    def state(self) -> dict[str, Tensor]:
        """Parameters, buffers, the optimizer's state and the sums since the last flush."""
        found = {name: value.clone() for name, value in self.student.state_dict().items()}
        for index, state in enumerate(self.step.optimizer.state.values()):
            found |= {f"optimizer {index} {key}": value.clone() for key, value in state.items()}
        for name in ("losses", "gradients", "observed"):
            found[name] = getattr(self.step, name).state_dict()["sums"].clone()
        return found


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> Sequence[str]:
    assert before.keys() == after.keys()
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def late_weights(patch: pytest.MonkeyPatch) -> list[torch.cuda.Stream]:
    """The streams in which weights' gradients are computed in captured updates, from now on all of them late."""
    seen: list[torch.cuda.Stream] = []
    gradients = weight_gradients._gradients

    def late(*args: Any) -> Sequence[Tensor | None]:
        if args[-1] == (False, True):
            seen.append(torch.cuda.current_stream())
            torch.cuda._sleep(LATE)
        return gradients(*args)

    patch.setattr(weight_gradients, "_gradients", late)
    return seen


def kernel_by_kernel(patch: pytest.MonkeyPatch) -> None:
    """Updates that are to be captured are not, but launch the very same kernels one by one."""
    patch.setattr(Graphs, "call", lambda _, kind, function, inputs: function(inputs))
