"""Trials whose pictures are changed one by one and mixed: their labels, their losses, their repeatability."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainable.trials import CPU, digest, numbers, train, train_and_stop, untrained_teacher
from trainable.config import DistillConfig, TrialConfig
from trainable.data.store import open_dataset
from trainable.distill.objective import Objective, method_of
from trainable.distill.terms import LOSS
from trainable.engine.checkpoint import best_student
from trainable.engine.feed import Feed
from trainable.engine.inputs import Inputs, Place
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher
from trainable.plan import initial_groups

MakeConfig = Callable[..., TrialConfig]
ALL: dict[str, Any] = {
    "flip": True,
    "resized_crop": [0.5, 1.0],
    "rand_augment": {"magnitude": 5},
    "erase": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
}


@pytest.mark.parametrize(
    "distill",
    [
        {"method": "none"},
        {"method": "kd", "alpha": 0.3, "temperature": 2.0},
        {"method": "mse", "alpha": 0.3},
        {"method": "kd_mse", "alpha": 0.3},
        {"method": "stablekd", "lam": 2.0, "decomposition": "5/2"},
    ],
    ids=lambda distill: distill["method"],
)
def test_the_loss_of_mixed_labels_is_the_mean_of_the_losses(
    distill: dict[str, Any],
    student: BlockNetwork,
    teacher: FrozenTeacher,
    batch: tuple[Tensor, Tensor],
) -> None:
    """Every term is affine in the label: L(λ·y + (1 − λ)·z) = λ·L(y) + (1 − λ)·L(z)."""
    config = DistillConfig.model_validate(distill)
    k = int(distill.get("decomposition", "1")[0])
    objective = Objective(student, method_of(config, student, initial_groups(5, k))).eval()
    images, mine = batch
    other, outputs = mine.roll(1, 0), teacher(images)
    one_hot = torch.eye(10)
    mixed = 0.3 * one_hot[mine] + 0.7 * one_hot[other]

    def loss(labels: Tensor) -> float:
        return objective(images, labels, outputs)[LOSS].item()

    assert loss(mixed) == pytest.approx(0.3 * loss(mine) + 0.7 * loss(other), rel=1e-5)
    assert loss(one_hot[mine]) == pytest.approx(loss(mine), rel=1e-6)


@pytest.mark.parametrize("label", [10, -1])
@pytest.mark.parametrize("position", [0, 5, 7])
@pytest.mark.parametrize("share", [0.6, 0.001, 1.0])
def test_a_label_without_a_class_is_found_where_it_is_and_not_where_it_was_mixed_into(
    label: int, position: int, share: float
) -> None:
    labels = torch.arange(8)
    labels[position] = label
    distributions = (labels[:, None] == torch.arange(10)).float()
    mixed = distributions * share + distributions.roll(1, 0) * (1 - share)
    inputs = Inputs(10, CPU)
    inputs.enter(4)
    inputs.start()
    inputs.look(torch.zeros(8, 3, 4, 4), mixed, 1)
    assert torch.equal(inputs.in_range(mixed), mixed)
    assert inputs.found.tolist() == [0, 1]
    assert inputs.place() == Place(4, 1, position)


def test_mixed_labels_that_are_whole_are_let_by() -> None:
    inputs = Inputs(10, CPU)
    inputs.start()
    share = torch.rand(64, 1, generator=torch.Generator().manual_seed(0))
    labels = share * torch.eye(10)[torch.arange(64) % 10] + (1 - share) * torch.eye(10)[3]
    inputs.look(torch.zeros(64, 3, 4, 4), labels, 0)
    assert inputs.found.tolist() == [0, 0]


def micro_batches(config: TrialConfig, epoch: int, skip: int = 0) -> list[tuple[Tensor, Tensor]]:
    feed = Feed(open_dataset(config.data), config, CPU)
    plan = feed.plan(epoch)[skip:]
    feed.enter(epoch)
    return [feed.augmented(batch) for batch in feed.batches(plan, epoch)]


@pytest.mark.parametrize("augment", [ALL, {"mixup": 0.8}, {"cutmix": 1.0, "crop": 1}])
def test_a_micro_batch_does_not_depend_on_those_before_it(
    augment: dict[str, Any], make_config: MakeConfig
) -> None:
    config = make_config(
        data={"augment": augment, "batch_size": 64, "subset": 0.2, "decode_workers": 0}
    )
    whole, rest = micro_batches(config, 2), micro_batches(config, 2, skip=2)
    assert len(whole) > 3
    for (images, labels), (again, same) in zip(whole[2:], rest, strict=True):
        assert images.dtype == labels.dtype == torch.float32
        assert labels.shape == (len(images), 10)
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    assert not torch.equal(whole[0][0][:8], micro_batches(config, 3)[0][0][:8])


def test_labels_stay_numbers_where_nothing_is_mixed(make_config: MakeConfig) -> None:
    config = make_config(data={"augment": {"erase": 0.5, "flip": True}, "decode_workers": 0})
    for images, labels in micro_batches(config, 1):
        assert labels.dtype == torch.int64
        assert labels.shape == (len(images),)


def test_a_trial_stopped_after_an_epoch_ends_as_one_that_was_not(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        data={"augment": ALL, "batch_size": 64, "decode_workers": 0, "subset": 0.2},
        train={"batchnorm": {"recalibrate": 1}},
    )
    teacher = untrained_teacher(config, tmp_path)
    whole = train(config, tmp_path / "whole", teacher)
    train_and_stop(config, tmp_path / "stopped", teacher, after=1)
    resumed = train(config, tmp_path / "stopped", teacher)
    assert numbers(resumed) == numbers(whole)
    files = [best_student(tmp_path / name) for name in ("whole", "stopped")]
    assert digest(files[0]) == digest(files[1])
    assert whole[-1].metrics["val/accuracy"] > 0
