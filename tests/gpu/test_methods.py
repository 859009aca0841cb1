"""Every method on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch

from tests.trainable.methods import METHODS, PICTURES, Case, case, noise
from trainable.config import DistillConfig, OptimConfig, TrainConfig, TrialConfig
from trainable.engine.optimizers import build_optimizer
from trainable.engine.settings import apply_settings
from trainable.engine.step import NORM, UPDATES, Step

NoHostSync = Callable[[], AbstractContextManager[None]]
CUDA = torch.device("cuda")
pytestmark = pytest.mark.gpu


def trial(found: DistillConfig, *, deterministic: bool) -> TrialConfig:
    tree = {"data": {"source": "digits"}, "student": {"model": "resnet18"}}
    train = {
        "precision": "fp16",
        "loss_scale": {"initial": 64.0},
        "accumulate": 2,
        "deterministic": deterministic,
    }
    return TrialConfig.model_validate({**tree, "distill": found, "train": train})


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Each method in train mode on the device, under the settings of its trials."""
    found = case(request.param)
    apply_settings(trial(found.config, deterministic=False))
    found.module.to(CUDA, memory_format=torch.channels_last).train()
    found.teacher.to(CUDA, memory_format=torch.channels_last)
    yield found
    apply_settings(trial(DistillConfig(), deterministic=False))


def updates(found: Case, config: TrainConfig, count: int) -> Callable[[], Step]:
    """So many updates of two micro-batches in fp16, as the loop takes them."""
    optimizer = build_optimizer(OptimConfig(lr=0.01), found.module.parameters(), CUDA)
    step = Step(found.module, optimizer, config, CUDA, classes=PICTURES.classes)
    images, labels = (tensor.to(CUDA) for tensor in noise())
    parts = list(zip(images.chunk(2), labels.chunk(2), strict=True))

    def take() -> Step:
        for _ in range(count):
            for number, (part, own) in enumerate(parts, start=1):
                with step.precision.forward():
                    outputs = found.ask(part)
                step.accumulate(part, own, outputs, update_size=16, last=number == 2)
            step.finish(0.01)
        return step

    return take


def test_nothing_waits_for_the_device(method: Case, no_host_sync: NoHostSync) -> None:
    take = updates(method, trial(method.config, deterministic=False).train, 10)
    take()
    torch.cuda.synchronize()
    with no_host_sync():
        step = take()
    assert step.gradients.flush()[UPDATES] > 0
    assert all(p.isfinite().all() for p in method.module.parameters())


def test_deterministic_algorithms_suffice(method: Case) -> None:
    config = trial(method.config, deterministic=True)
    apply_settings(config)
    step = updates(method, config.train, 3)()
    assert step.gradients.flush()[NORM] > 0
