"""What a method trains of its own: part of an update like the student, and of no student that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.trainable.methods import Case, case, noise
from tests.trainable.stepping import as_bytes
from tests.trainable.trials import CPU, train, untrained_teacher
from trainable import records
from trainable.config import OptimConfig, TrainConfig, TrialConfig
from trainable.distill.objective import METHOD
from trainable.engine.checkpoint import BEST
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import NORM, Step
from trainable.networks.build import Pictures, build_student
from trainable.records import UPDATE_DISTANCE


@pytest.fixture
def found() -> Case:
    reviewkd = case("reviewkd")
    reviewkd.module.train()
    return reviewkd


def step_of(found: Case, **train: Any) -> Step:
    optimizer = build_optimizer(OptimConfig(lr=0.1), found.module.parameters(), CPU)
    settings = TrainConfig.model_validate({"observe_every": 1, **train})
    return Step(found.module, optimizer, settings, CPU, classes=10)


def take(step: Step, found: Case, factor: float = 1.0) -> None:
    images, labels = noise()
    outputs = found.ask(images)
    step.accumulate(images * factor, labels, outputs, update_size=len(labels), last=True)
    step.finish(0.1)


def own(found: Case) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in found.module.method_state().items()}


def test_an_update_moves_them(found: Case) -> None:
    before, step = own(found), step_of(found)
    take(step, found)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in own(found).items())


def test_their_gradient_and_travel_are_a_block_of_their_own(found: Case) -> None:
    step = step_of(found)
    images, labels = noise()
    step.accumulate(images, labels, found.ask(images), update_size=16, last=True)
    parameters = dict(found.module.block_parameters())[METHOD]
    expected = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
    whole = torch.cat([p.grad.flatten() for p in found.module.parameters() if p.grad is not None])
    step.finish(0.1)
    sums = step.gradients.flush()
    assert sums[METHOD] == pytest.approx(expected.item(), rel=1e-5)
    assert sums[NORM] == pytest.approx(whole.norm().item(), rel=1e-5)
    assert step.observed.flush().blocks[METHOD][UPDATE_DISTANCE] > 0


@pytest.mark.parametrize("clip_by", ["norm", "layer", "value"])
def test_they_are_clipped(clip_by: str, found: Case) -> None:
    step = step_of(found, clip=1e-3, clip_by=clip_by)
    seen: list[float] = []
    parameters = dict(found.module.block_parameters())[METHOD]
    step.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.abs().max().item() for p in parameters)  # type: ignore[union-attr]
    )
    take(step, found)
    assert 0 < max(seen) <= 1.001e-3


def test_a_skipped_update_leaves_them_as_they_were(found: Case) -> None:
    """Parameters, momentum and BatchNorm's running statistics, bit for bit."""
    step = step_of(found)
    take(step, found)

    def state() -> list[bytes]:
        momentum = [s["momentum_buffer"] for s in step.optimizer.state.values()]
        return [as_bytes(tensor) for tensor in (*own(found).values(), *momentum)]

    before = state()
    take(step, found, factor=float("inf"))
    assert step.health.flush().total == 1
    assert state() == before
    take(step, found)
    assert state() != before


def test_a_trial_keeps_the_student_alone_and_tells_of_the_rest(tmp_path: Path) -> None:
    config = TrialConfig.model_validate(
        {
            "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 256},
            "teacher": {"model": "mini_resnet_10_8", "checkpoint": "/nowhere.safetensors"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "reviewkd", "lam": 1.0},
            "train": {"epochs": 2},
            "resources": {"gpus_per_worker": 0},
        }
    )
    first, second = train(config, tmp_path, untrained_teacher(config, tmp_path))
    expected = build_student(config, Pictures(10, 3, (8, 8))).network.state_dict()
    assert safetensors.torch.load_file(tmp_path / BEST).keys() == expected.keys()
    assert first.metrics[records.grad_norm_of(METHOD)] > 0
    assert first.metrics[records.update_distance_of(METHOD)] > 0
    assert second.metrics[records.TRAIN_FEATURE] < first.metrics[records.TRAIN_FEATURE]
