"""The step on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainable import records
from trainable.config import DistillConfig, OptimConfig, TrainConfig, TrialConfig
from trainable.distill.objective import Objective, method_of
from trainable.distill.terms import LOSS
from trainable.engine.loop import TrialTask, run
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import Step
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.zoo import build
from trainable.plan import initial_groups

NoHostSync = Callable[[], AbstractContextManager[None]]
pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def network(seed: int, name: str = "mini_resnet_10_8") -> BlockNetwork:
    torch.manual_seed(seed)
    layers = build(name, classes=10, channels=3, image_size=16, path="student.model")
    return BlockNetwork(layers)


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(64, 3, 16, 16, generator=generator).to(CUDA)
    images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 10, (64,), generator=generator).to(CUDA)


class Setup:
    """A step with StableKD-5/2's first stage."""

    def __init__(self, **train: Any) -> None:
        self.student, self.teacher = network(0), FrozenTeacher(network(1)).to(CUDA)
        config = DistillConfig(method="stablekd", lam=1.0, decomposition="5/2")
        method = method_of(config, self.student, initial_groups(5, 5))
        objective = Objective(self.student, method).to(CUDA).train()
        objective.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(OptimConfig(lr=0.1), objective.parameters(), CUDA)
        self.step = Step(objective, optimizer, TrainConfig.model_validate(train), CUDA)
        self.images, self.labels = pictures()

    def update(self, factor: float = 1.0) -> None:
        images = self.images * factor
        with self.step.precision.forward():
            outputs = self.teacher(images)
        self.step.accumulate(images, self.labels, outputs, update_size=64, last=True)
        self.step.finish(0.05)

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.student.state_dict().items()}


@pytest.fixture
def restored_determinism() -> Iterator[None]:
    """A trial leaves the process deterministic; other tests must not be."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(precision: str) -> None:
    setup = Setup(precision=precision, clip=5.0)
    losses: list[float] = []
    for _ in range(30):
        setup.update()
        sums = setup.step.losses.flush()
        losses += [sums[LOSS]] if sums[LOSS] else []
    assert len(losses) > 20
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_nothing_waits_for_the_device_between_flushes(
    precision: str, no_host_sync: NoHostSync
) -> None:
    setup = Setup(precision=precision, clip=5.0)
    setup.update()
    torch.cuda.synchronize()
    with no_host_sync():
        for _ in range(50):
            setup.update()


def test_an_overflow_in_fp16_halves_the_scale_and_leaves_no_trace() -> None:
    setup = Setup(precision="fp16")
    for _ in range(20):
        setup.update()
    setup.step.flush_skipped()
    scale, before = setup.step.precision.scaler.get_scale(), setup.weights()
    setup.update(factor=float("inf"))
    assert setup.step.precision.scaler.get_scale() == scale / 2
    assert setup.step.flush_skipped() == 1
    assert all(torch.equal(value, before[name]) for name, value in setup.weights().items())
    setup.update()
    assert setup.step.flush_skipped() == 0
    assert any(not torch.equal(value, before[name]) for name, value in setup.weights().items())


@pytest.mark.usefixtures("restored_determinism")
def test_a_trial_repeats_its_bits_where_that_is_asked(tmp_path: Path) -> None:
    config = TrialConfig.model_validate(
        {
            "data": {"source": "digits", "val_fraction": 0.25, "augment": {"crop": 1}},
            "student": {"model": "mini_resnet_10_8"},
            "distill": {"method": "none"},
            "train": {"epochs": 2, "precision": "fp16", "deterministic": True},
            "resources": {"gpus_per_worker": 1},
        }
    )

    def trained(name: str) -> list[dict[str, float]]:
        found: list[dict[str, float]] = []
        run(TrialTask(config, tmp_path / name, None), lambda r: found.append(r.metrics), CUDA)
        return [{k: v for k, v in m.items() if k != records.TRAIN_IMAGES_PER_SECOND} for m in found]

    assert trained("a") == trained("b")
