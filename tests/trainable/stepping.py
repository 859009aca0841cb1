"""Steps for the tests of one: small networks, updates in parts, and all that a step owns, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.trainable.trials import CPU
from trainable.config import OptimConfig, TrialConfig
from trainable.distill.objective import Method, Objective, method_of
from trainable.distill.terms import LOSS, Terms
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import Step
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher
from trainable.plan import initial_groups

Batch = tuple[Tensor, Tensor]
PLAIN_SGD = {"lr": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
"""With this an update is the learning rate times the gradient."""


def plain_network(seed: int) -> BlockNetwork:
    """Two blocks without BatchNorm."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential()
    for name, layer in (
        ("conv", torch.nn.Conv2d(3, 4, 3)),
        ("act", torch.nn.Tanh()),
        ("flat", torch.nn.Flatten()),
        ("fc", torch.nn.Linear(4 * 6 * 6, 10)),
    ):
        network.add_module(name, layer)
    return BlockNetwork(network, ("act",))


def step_of(
    student: BlockNetwork,
    config: TrialConfig,
    optim: dict[str, Any] | None = None,
    method: Method | None = None,
) -> Step:
    """A step on the CPU."""
    k = int((config.distill.decomposition or "1/0").partition("/")[0])
    method = method or method_of(config.distill, student, initial_groups(len(student), k))
    objective = Objective(student, method).train()
    settings = OptimConfig.model_validate(optim or {"lr": 0.1})
    optimizer = build_optimizer(settings, objective.parameters(), CPU)
    return Step(objective, optimizer, config.train, CPU, classes=10)


def accumulate(step: Step, teacher: FrozenTeacher, batch: Batch, parts: Sequence[int]) -> None:
    """The micro-batches of an update: `parts` are their sizes."""
    images, labels = batch
    start = 0
    for number, size in enumerate(parts, start=1):
        part = slice(start, start + size)
        start += size
        step.accumulate(
            images[part],
            labels[part],
            teacher(images[part]),
            update_size=len(labels),
            last=number == len(parts),
        )


def update(
    step: Step, teacher: FrozenTeacher, batch: Batch, parts: Sequence[int], lr: float
) -> None:
    accumulate(step, teacher, batch, parts)
    step.finish(lr)


def noise(seed: int, size: int = 16) -> Batch:
    """Pictures and labels, a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 10, (size,), generator=generator)


def weights(student: BlockNetwork) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {name: value.clone() for name, value in student.state_dict().items()}


def gradients_at_step(step: Step) -> list[list[Tensor]]:
    """Will hold the gradients that the optimizer is given, a list an update."""
    found: list[list[Tensor]] = []
    step.optimizer.register_step_pre_hook(
        lambda *_: found.append([p.grad.clone() for p in step.membership.parameters])  # type: ignore[union-attr]
    )
    return found


def owned(step: Step, student: BlockNetwork) -> dict[str, bytes]:
    """What a skipped update must leave as it is, bit for bit."""
    found = {name: as_bytes(value) for name, value in student.state_dict().items()}
    for index, state in enumerate(step.optimizer.state.values()):
        found |= {f"optimizer {index} {key}": as_bytes(value) for key, value in state.items()}
    for name in ("losses", "gradients", "observed"):
        found[name] = as_bytes(getattr(step, name).state_dict()["sums"])
    found["largest"] = as_bytes(step.observed.state_dict()["largest"])
    return found


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def leave_out(step: Step) -> None:
    """Go on as if an update had been tried, without a trace."""
    shared = step.shared_state()
    step.load({**shared, "updates": shared["updates"] + 1}, step.own_state())


class Breakable:
    """A method of which one term can be broken: what is not finite in it enters the loss, too."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.term: str | None = None
        self.factor = float("nan")

    def __call__(self, *inputs: Any) -> Terms:
        terms = self._method(*inputs)
        if self.term is None:
            return terms
        broken = terms[self.term] * self.factor
        return {**terms, LOSS: terms[LOSS] + broken, self.term: broken}
