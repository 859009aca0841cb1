"""Micro-batches: the same update in other parts, what each leaves behind, and when ranks talk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainable.stepping import (
    PLAIN_SGD,
    Batch,
    accumulate,
    gradients_at_step,
    noise,
    plain_network,
    step_of,
    update,
    weights,
)
from tests.trainable.trials import CPU, MakeConfig
from trainable.config import TrialConfig
from trainable.distill.objective import method_of
from trainable.distill.terms import LOSS
from trainable.engine import loop
from trainable.engine.loop import TrialTask
from trainable.engine.schedule import learning_rates
from trainable.engine.step import SAMPLES, UPDATES, Step
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher
from trainable.plan import stages

METHODS: dict[str, dict[str, Any]] = {
    "kd": {"method": "kd", "alpha": 0.3},
    "mse": {"method": "mse", "alpha": 0.3},
}
PARTS = [[8, 8], [4, 4, 4, 4], [2] * 8, [1] * 16, [5, 11], [7, 7, 2], [15, 1]]


def mean_gradients(config: TrialConfig, batch: Batch) -> list[Tensor]:
    """Of the mean loss over the whole batch, by torch alone."""
    student, teacher = plain_network(0), FrozenTeacher(plain_network(1))
    terms = method_of(config.distill, student, [])(student, *batch, teacher(batch[0]))
    return list(torch.autograd.grad(terms[LOSS] / len(batch[1]), list(student.parameters())))


@pytest.mark.parametrize("parts", [[16], *PARTS], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_an_update_weighs_every_sample_alike(
    method: str, parts: list[int], make_config: MakeConfig
) -> None:
    config, batch = make_config(distill=METHODS[method]), noise(0)
    whole, split = plain_network(0), plain_network(0)
    steps = [step_of(student, config) for student in (whole, split)]
    used = gradients_at_step(steps[1])
    teacher = FrozenTeacher(plain_network(1))
    for step, sizes in zip(steps, ([16], parts), strict=True):
        update(step, teacher, batch, sizes, 0.1)
    for mine, theirs in zip(used[0], mean_gradients(config, batch), strict=True):
        assert (mine - theirs).abs().max() <= 1e-6
    for name, value in weights(whole).items():
        assert (weights(split)[name] - value).abs().max() <= 1e-6, name
    losses = [step.losses.flush() for step in steps]
    assert losses[1][SAMPLES] == 16
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


class Halves(nn.Module):
    """A layer whose two parameters autograd gives one gradient, in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.zeros(30)), nn.Parameter(torch.zeros(30))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ (self.one.view(3, 10) + self.two.view(3, 10))


@pytest.mark.parametrize("clip", [None, 1e-3])
@pytest.mark.parametrize("parts", [[16], [8, 8], [4] * 4], ids=str)
def test_gradients_in_one_place_are_changed_once_each(
    parts: list[int], clip: float | None, make_config: MakeConfig
) -> None:
    """By another micro-batch, and by clipping."""
    config, batch = make_config(distill=METHODS["kd"], train={"clip": clip}), noise(0)
    student = BlockNetwork(nn.Sequential(Halves(), nn.Identity()), ("0",))
    teacher, step = FrozenTeacher(plain_network(1)), step_of(student, config)
    terms = method_of(config.distill, student, [])(student, *batch, teacher(batch[0]))
    expected = torch.autograd.grad(terms[LOSS] / len(batch[1]), list(student.parameters()))
    used = gradients_at_step(step)
    update(step, teacher, batch, parts, 0.1)
    norm = torch.stack([gradient.norm() for gradient in expected]).norm()
    factor = 1.0 if clip is None else clip / norm
    for mine, theirs in zip(used[0], expected, strict=True):
        torch.testing.assert_close(mine, theirs * factor, rtol=1e-4, atol=1e-7)


def test_every_micro_batch_counts_in_batchnorm_and_every_update_once_in_the_rest(
    student: BlockNetwork, teacher: FrozenTeacher, make_config: MakeConfig
) -> None:
    step = step_of(student, make_config(train={"observe_every": 1}))
    tracked = [v for n, v in student.named_buffers() if n.endswith("num_batches_tracked")]
    assert len(tracked) == 12
    seen = 0
    for number, parts in enumerate(([16], [8, 8], [4, 4, 4, 4], [6, 6, 4]), start=1):
        accumulate(step, teacher, noise(number), parts)
        step.finish(0.01)
        seen += len(parts)
        assert {int(count) for count in tracked} == {seen}
        assert step.shared_state()["updates"] == number
    assert step.gradients.flush()[UPDATES] == 4
    assert step.observed.state_dict()["counts"][:2].tolist() == [4, 4]


def test_an_update_begins_without_the_gradients_of_the_one_before(make_config: MakeConfig) -> None:
    config = make_config()
    step, teacher = step_of(plain_network(0), config, PLAIN_SGD), FrozenTeacher(plain_network(1))
    used = gradients_at_step(step)
    for parts in ([16], [8, 8], [16]):
        update(step, teacher, noise(0), parts, 0.0)
    for first, second, third in zip(*used, strict=True):
        assert torch.equal(first, third)
        assert (first - second).abs().max() <= 1e-6


class Spied(Step):
    """Notes the learning rates that it is given."""

    rates: tuple[float, ...] = ()

    def finish(self, lr: float) -> None:
        Spied.rates = (*Spied.rates, lr)
        super().finish(lr)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_schedule_advances_once_an_update(
    micro_batches: int, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Step", Spied)
    monkeypatch.setattr(Spied, "rates", ())
    config = make_config(
        data={"batch_size": 200},
        distill={"method": "none"},
        train={"accumulate": micro_batches},
    )
    loop.run(TrialTask(config, tmp_path, None), lambda record: None, CPU)
    updates_per_epoch, rest = divmod(len(Spied.rates), config.train.epochs)
    assert rest == 0
    assert updates_per_epoch == 6  # of 200 pictures
    assert Spied.rates == learning_rates(config, stages(config, 5), updates_per_epoch)
