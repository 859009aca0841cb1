"""What a method trains of its own: part of an update like the student, and of no student that is kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

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


def joined(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Their gradients, in fp64."""
    return torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])


def test_their_gradient_and_travel_are_a_block_of_their_own(found: Case) -> None:
    step = step_of(found)
    images, labels = noise()
    step.accumulate(images, labels, found.ask(images), update_size=16, last=True)
    expected = joined(dict(found.module.block_parameters())[METHOD]).norm().item()
    step.finish(0.1)
    assert step.gradients.flush()[METHOD] == pytest.approx(expected, rel=1e-5)
    assert step.observed.flush().blocks[METHOD][UPDATE_DISTANCE] > 0


def test_what_is_told_of_the_whole_student_has_nothing_of_them(found: Case) -> None:
    step = step_of(found)
    images, labels = noise()
    parameters = list(found.module.student.parameters())
    before = [p.detach().clone() for p in parameters]
    step.accumulate(images, labels, found.ask(images), update_size=16, last=True)
    ours = dict(found.module.block_parameters())[METHOD][0]
    assert ours.grad is not None
    with torch.no_grad():
        ours.grad.flatten()[0] = 1e3  # as no entry of the student's is
    gradient = joined(parameters)
    step.finish(0.1)
    moved = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
    whole = step.observed.flush().whole
    assert step.gradients.flush()[NORM] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert whole[records.GRAD_NORM] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert whole[records.GRAD_MAX] == pytest.approx(gradient.abs().max().item(), rel=1e-5)
    assert whole[records.GRAD_MEAN] == pytest.approx(gradient.mean().item(), rel=1e-4)
    assert whole[records.GRAD_STD] == pytest.approx(gradient.std(correction=0).item(), rel=1e-5)
    distance = torch.cat([part.flatten() for part in moved]).double().norm().item()
    assert whole[UPDATE_DISTANCE] == pytest.approx(distance, rel=1e-4)


def test_the_norm_that_is_bounded_has_theirs_in_it(found: Case) -> None:
    step, seen = step_of(found, clip=1e-3), list[float]()
    step.optimizer.register_step_pre_hook(
        lambda *_: seen.append(joined(found.module.parameters()).norm().item())
    )
    take(step, found)
    assert seen == [pytest.approx(1e-3, rel=1e-3)]


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
