"""What a trial does where one stage ends and the next begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.trainable.trials import CPU, MakeConfig, numbers, train, untrained_teacher
from trainable import records
from trainable.config import OptimConfig, TrialConfig
from trainable.data.store import Dataset, open_dataset
from trainable.engine.checkpoint import BEST, CHECKPOINTS
from trainable.engine.feed import Feed
from trainable.engine.loop import TrialTask, run
from trainable.engine.optimizers import build_optimizer, reset_state, set_learning_rate
from trainable.engine.step import Step
from trainable.errors import TrainingError
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student
from trainable.records import EpochRecord

PER_EPOCH = 3
STABLEKD = {
    "method": "stablekd",
    "alpha": 0.5,
    "decomposition": "5/2",
    "stage_epochs": (2, 1, 2),
}
STAGES = [1, 1, 2, 3, 3]
ENDS = (2, 3, 5)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "sgd without nesterov": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": False},
    "sgd without momentum": {"name": "sgd", "lr": 0.05, "momentum": 0.0},
    "adamw": {"name": "adamw", "lr": 0.01},
}
Weights = dict[str, Tensor]
Run = Callable[..., list[Weights]]


@pytest.fixture
def staged(make_config: MakeConfig) -> MakeConfig:
    """Three updates an epoch and five epochs in stages of 2, 1 and 2; sections are updated by keyword."""

    def make(**sections: dict[str, Any]) -> TrialConfig:
        data = {"val_fraction": 0.75, "batch_size": 120}
        base = {"data": data, "distill": STABLEKD, "train": {"epochs": 5}}
        given = {name: {**base.get(name, {}), **values} for name, values in sections.items()}
        return make_config(**{**base, **given})

    return make


@pytest.fixture
def teacher_file(tmp_path: Path, make_config: MakeConfig) -> Path:
    return untrained_teacher(make_config(), tmp_path)


@pytest.fixture
def kept(tmp_path: Path, teacher_file: Path) -> Run:
    """Train a config to its end; the student of each epoch's checkpoint."""

    def run_it(config: TrialConfig, name: str) -> list[Weights]:
        found: list[Weights] = []

        def report(_: EpochRecord) -> None:
            newest = max((tmp_path / name / CHECKPOINTS).iterdir())
            found.append(load_file(newest / "student.safetensors"))

        run(TrialTask(config, tmp_path / name, teacher_file), report, CPU)
        return found

    return run_it


def running(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if "running_" in name}


def learned(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if name not in running(weights)}


def same(one: Weights, other: Weights) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def normalized(data: Dataset, images: np.ndarray[Any, Any]) -> Tensor:
    """uint8 (B, C, H, W) → float32, with the set's mean and standard deviation of each channel."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return (torch.from_numpy(images) / 255 - mean) / std


def network_of(config: TrialConfig, weights: Weights) -> BlockNetwork:
    student = build_student(config, Pictures(10, 3, (8, 8)))
    student.network.load_state_dict(weights)
    return student


# ------------------------------------------------------------------------------------------ stages
def test_stages_take_the_epochs_that_the_config_gives(
    staged: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    found = train(staged(), tmp_path / "trial", teacher_file)
    assert [record.metrics[records.TRAIN_STAGE] for record in found] == STAGES


def test_what_is_validated_is_the_composed_student_that_is_kept(
    staged: MakeConfig, teacher_file: Path, tmp_path: Path, kept: Run
) -> None:
    """In every stage, by plain means: the undivided network on the pictures held out."""
    config = staged(train={"batchnorm": {"recalibrate": 1, "recalibrate_at": "stage"}})
    found = train(config, tmp_path / "told", teacher_file)
    students = kept(config, "kept")
    data = open_dataset(config.data)
    assert data.val is not None
    images = normalized(data, data.val.images(np.arange(len(data.val))))
    labels = torch.from_numpy(data.val.labels)
    for record, weights in zip(found, students, strict=True):
        with torch.no_grad():
            right = network_of(config, weights).network.eval()(images).argmax(1) == labels
        assert record.metrics[records.VAL_ACCURACY] == pytest.approx(float(right.float().mean()))


# ------------------------------------------------------------------------------------------ optimizer
def trained(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Three updates on random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_learning_rate(optimizer, 0.1)
        optimizer.step()


def some_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in (3, 7)]


@pytest.mark.parametrize("optim", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_after_a_reset_an_optimizer_is_as_a_fresh_one(optim: dict[str, Any]) -> None:
    config = OptimConfig.model_validate(optim)
    parameters = some_parameters()
    used = build_optimizer(config, parameters, CPU)
    trained(parameters, used, seed=1)
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    places = [v.data_ptr() for state in used.state.values() for v in state.values()]
    reset_state(used)
    trained(parameters, used, seed=2)
    trained(copies, build_optimizer(config, copies, CPU), seed=2)
    for ours, theirs in zip(parameters, copies, strict=True):
        assert torch.equal(ours, theirs)
    assert [v.data_ptr() for state in used.state.values() for v in state.values()] == places


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("reset", [False, True])
def test_the_optimizers_state_is_reset_where_a_stage_begins_and_nowhere_else(
    optim: str,
    reset: bool,
    staged: MakeConfig,
    teacher_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty: list[bool] = []
    finish = Step.finish

    def watched(self: Step, lr: float) -> None:
        values = [v for state in self.optimizer.state.values() for v in state.values()]
        empty.append(not any(bool(value.any()) for value in values))
        finish(self, lr)

    monkeypatch.setattr(Step, "finish", watched)
    config = staged(optim={**OPTIMIZERS[optim], "reset_at_stages": reset})
    train(config, tmp_path / "trial", teacher_file)
    begins = {0, 2 * PER_EPOCH, 3 * PER_EPOCH} if reset else {0}
    assert len(empty) == 5 * PER_EPOCH
    assert {update for update, is_empty in enumerate(empty) if is_empty} == begins


def test_a_trial_of_one_stage_has_nothing_to_reset(
    staged: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    def told(reset: bool) -> list[dict[str, float]]:
        optim = {"lr": 0.05, "reset_at_stages": reset}
        distill = {"method": "kd", "stage_epochs": None}
        config = staged(distill=distill, optim=optim, train={"epochs": 2})
        return numbers(train(config, tmp_path / str(reset), teacher_file))

    assert told(reset=True) == told(reset=False)


STOPS = {
    "before the first update of a stage": (6,),
    "after a stage's first checkpoint": (8,),
    "in every place": (1, 3, 5, 6, 7, 8, 9, 10, 11, 14),
}


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_trial_stopped_around_a_stages_start_ends_in_the_same_bits(
    optim: str, stops: tuple[int, ...], staged: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    """A checkpoint at every even update and every epoch's end; stops before these updates, from 0."""
    config = staged(
        data={"augment": {"crop": 1, "flip": True}},
        optim={**OPTIMIZERS[optim], "reset_at_stages": True},
        train={
            "epochs": 5,
            "checkpoint": {"every": 2},
            "batchnorm": {"recalibrate": 2, "recalibrate_at": "stage"},
        },
    )
    whole = train(config, tmp_path / "whole", teacher_file)
    finish = Step.finish
    for stop in stops:

        def finish_or_stop(self: Step, lr: float, stop: int = stop) -> None:
            if self._updates == stop:
                raise RuntimeError("stopped by the test")
            finish(self, lr)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Step, "finish", finish_or_stop)
            with pytest.raises(TrainingError, match="stopped by the test"):
                train(config, tmp_path / "cut", teacher_file)
    assert numbers(train(config, tmp_path / "cut", teacher_file)) == numbers(whole)
    assert last_state(tmp_path / "cut") == last_state(tmp_path / "whole")
    assert (tmp_path / "cut" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()


def last_state(folder: Path) -> list[object]:
    """The optimizer's state and the student at the end, as plain numbers."""
    (last,) = (folder / CHECKPOINTS).iterdir()
    optimizer = torch.load(last / "state.pt", weights_only=True)["step"]["optimizer"]
    values = [v.tolist() for state in optimizer["state"].values() for v in state.values()]
    assert values
    return [*values, (last / "student.safetensors").read_bytes()]


# ------------------------------------------------------------------------------------------ BatchNorm
AT_STAGES = {"recalibrate": 2, "recalibrate_at": "stage"}


def measured(config: TrialConfig, weights: Weights, epoch: int, updates: int) -> Weights:
    """Mean over batches of each BatchNorm's input moments in the composed network, by hooks of our own."""
    student = network_of(config, weights)
    network = student.network.train()
    layers = {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm)}
    means: dict[str, list[Tensor]] = {name: [] for name in layers}
    variances: dict[str, list[Tensor]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
            means[name].append(inputs[0].mean((0, 2, 3)))
            variances[name].append(inputs[0].var((0, 2, 3), unbiased=True))

        return look

    for name, layer in layers.items():
        layer.register_forward_pre_hook(hook(name))
    data = open_dataset(config.data)
    with torch.no_grad():
        for update in Feed(data, config, CPU).plan(epoch)[:updates]:
            (indices,) = update.micro_batches
            network(normalized(data, data.train.images(indices)))
    assert all(len(batches) == updates for batches in means.values())
    result = {f"{name}.running_mean": torch.stack(found).mean(0) for name, found in means.items()}
    for name, found in variances.items():
        result[f"{name}.running_var"] = torch.stack(found).mean(0)
    return result


def test_at_stage_ends_the_kept_statistics_are_those_of_the_composed_student(
    staged: MakeConfig, kept: Run
) -> None:
    config = staged(train={"batchnorm": AT_STAGES})
    plain, settled = kept(staged(), "plain"), kept(config, "settled")
    for epoch in range(1, 6):
        theirs = measured(config, settled[epoch - 1], epoch, updates=2)
        ours = running(settled[epoch - 1])
        assert ours.keys() == theirs.keys()
        close = all(torch.allclose(ours[n], theirs[n], rtol=1e-4, atol=1e-5) for n in theirs)
        assert close == (epoch in ENDS)
    # Until the first stage ends, nothing is another than without it.
    assert same(settled[0], plain[0])


def test_recalibrated_statistics_leave_the_training_alone(staged: MakeConfig, kept: Run) -> None:
    """It normalises by its batches, and its running statistics go on from the recalibrated ones."""
    plain = kept(staged(), "plain")
    settled = kept(staged(train={"batchnorm": AT_STAGES}), "settled")
    for before, after in zip(plain, settled, strict=True):
        assert same(learned(before), learned(after))
    assert not same(running(plain[1]), running(settled[1]))
    # Epoch 4 ends no stage: after its updates, this much is left of what epoch 3 ended with.
    left = 0.9**PER_EPOCH
    for name, value in running(settled[3]).items():
        gone_on = plain[3][name] + left * (settled[2][name] - plain[2][name])
        torch.testing.assert_close(value, gone_on, rtol=1e-4, atol=1e-6)


def test_at_stages_and_at_epochs_are_the_same_at_a_stages_end(
    staged: MakeConfig, kept: Run
) -> None:
    at_stages = kept(staged(train={"batchnorm": AT_STAGES}), "stages")
    at_epochs = kept(staged(train={"batchnorm": {"recalibrate": 2}}), "epochs")
    matches = [same(one, other) for one, other in zip(at_stages, at_epochs, strict=True)]
    assert matches == [epoch in ENDS for epoch in range(1, 6)]


def test_what_is_frozen_is_recalibrated_first(staged: MakeConfig, kept: Run) -> None:
    """Although epoch 1 ends no stage; later stages' ends leave it as it is."""
    config = staged(train={"batchnorm": {**AT_STAGES, "freeze_after": 1}})
    students = kept(config, "frozen")
    for name, value in measured(config, students[0], epoch=1, updates=2).items():
        torch.testing.assert_close(students[0][name], value, rtol=1e-4, atol=1e-5)
    assert all(same(running(student), running(students[0])) for student in students[1:])
    assert not same(learned(students[1]), learned(students[0]))
