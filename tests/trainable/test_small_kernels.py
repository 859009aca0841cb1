"""Operations of an update beside its networks: on a GPU each is a kernel, which takes its time however small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainable.trials import CPU, MakeConfig
from trainable.config import OptimConfig
from trainable.data.store import open_dataset
from trainable.distill.kd import KD
from trainable.distill.objective import Objective
from trainable.distill.terms import LOSS
from trainable.engine.failures import Progress
from trainable.engine.feed import Feed
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import Step
from trainable.engine.updater import Updater
from trainable.networks.build import Pictures, build_student, build_teacher_network
from trainable.networks.teacher import FrozenTeacher

SIZE = 32
FREE = {"_record_function_enter_new", "_record_function_exit", "empty_like", "lift_fresh"}
"""Operations that compute nothing; so are those that give a view of their input."""


class Operations(TorchDispatchMode):
    """Counts what is computed inside, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not (func.is_view or name in FREE):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], None]) -> Counter[str]:
    with Operations() as found:
        work()
    return found.counts


@pytest.mark.parametrize(
    ("precision", "augment", "most"),
    [
        ("fp32", {"crop": 1, "flip": True}, 76),
        ("fp16", {"crop": 1, "flip": True}, 80),
        ("fp32", {}, 69),
    ],
)
def test_an_update_has_few_operations_beside_its_networks(
    precision: str, augment: dict[str, Any], most: int, make_config: MakeConfig
) -> None:
    """KD with the norm bounded, in an update whose gradient is not observed."""
    config = make_config(
        data={"batch_size": SIZE, "augment": augment},
        train={"clip": 5.0, "precision": precision},
    )
    pictures = Pictures(10, 3, (8, 8))
    teacher = FrozenTeacher(build_teacher_network(config, pictures))
    objective = Objective(build_student(config, pictures), KD(config.distill)).train()
    optimizer = build_optimizer(OptimConfig(), objective.parameters(), CPU)
    step = Step(objective, optimizer, config.train, CPU, classes=10)
    feed = Feed(open_dataset(config.data), config, CPU)
    feed.enter(1)
    updater = Updater(config, feed, teacher, step, Progress(), CPU)
    batches = feed.batches(feed.plan(1), 1)
    updater.take(batches, 1, SIZE, 0.1)
    batch = next(batches)
    images, labels = feed.augmented(batch)

    def networks() -> None:
        with step.precision.forward():
            outputs = teacher(images)
            terms = objective(images, labels, outputs)
        terms[LOSS].backward()

    of_update = operations(lambda: updater.take(iter([batch]), 1, SIZE, 0.1))
    beside = of_update.copy()
    beside.subtract(operations(networks))
    assert beside.total() <= most, beside
