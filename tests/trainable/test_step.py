"""One optimizer update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.trainable.conftest import PICTURES
from tests.trainable.stepping import (
    Batch,
    Breakable,
    accumulate,
    gradients_at_step,
    owned,
    plain_network,
    step_of,
    update,
    weights,
)
from tests.trainable.trials import MakeConfig, assert_equal
from trainable.distill.kd import KD
from trainable.distill.objective import method_of
from trainable.distill.terms import LOSS
from trainable.engine.step import SAMPLES
from trainable.engine.summary import training_summary
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import build_student
from trainable.networks.teacher import FrozenTeacher, TeacherOutputs
from trainable.statistics.gradients import norms_of

SGD = {"lr": 1.0, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
ADAMW = {"lr": 1.0, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("settings", "plain_optimizer", "rates"),
    [
        (SGD, lambda parameters: torch.optim.SGD(parameters, **SGD), (0.3, 0.2, 0.1)),
        (
            {"name": "adamw", **ADAMW},
            lambda parameters: torch.optim.AdamW(parameters, **ADAMW),
            (3e-3, 2e-3),
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_an_update_is_the_plain_optimizers_on_the_mean_loss(
    settings: dict[str, Any],
    plain_optimizer: Callable[[Any], torch.optim.Optimizer],
    rates: tuple[float, ...],
    batch: Batch,
    make_config: MakeConfig,
) -> None:
    config = make_config()
    teacher = FrozenTeacher(plain_network(1))
    mine, plain = plain_network(0), plain_network(0)
    step, optimizer = step_of(mine, config, settings), plain_optimizer(plain.parameters())
    for lr in rates:
        update(step, teacher, batch, [16], lr)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        (KD(config.distill)(plain, *batch, teacher(batch[0]))[LOSS] / 16).backward()
        optimizer.step()
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(mine)[name], value, rtol=1e-5, atol=1e-6)


def test_gradient_norms_are_those_of_torch(
    student: BlockNetwork, teacher: FrozenTeacher, batch: Batch, make_config: MakeConfig
) -> None:
    step = step_of(student, make_config())
    step.accumulate(*batch, teacher(batch[0]), update_size=16, last=True)
    norms = step.membership.joined(norms_of(step.membership.gradients()))
    total = torch.nn.utils.get_total_norm([p.grad for p in student.parameters()])
    torch.testing.assert_close(norms.total, total)
    for index, (_, parameters) in enumerate(student.block_parameters()):
        block = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.testing.assert_close(norms.blocks[index], block)


def test_a_block_called_as_a_total_is_not_taken_for_it(make_config: MakeConfig) -> None:
    """The fourth cut of a vision transformer is its `norm`."""
    config = make_config(student={"model": "vit_t4"})
    student, teacher = (build_student(config, PICTURES) for _ in range(2))
    step = step_of(student, config)
    found = gradients_at_step(step)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 8, 8, generator=generator)
    update(step, FrozenTeacher(teacher), (images, torch.arange(4)), [4], 0.1)
    metrics = training_summary(step, []).metrics
    total = torch.stack([gradient.norm() for gradient in found[0]]).norm().item()
    assert metrics["grad/norm"] == pytest.approx(total, rel=1e-4)
    assert 0 < metrics["grad/norm.norm"] < total
    blocks = [metrics[f"grad/norm.{name}"] ** 2 for name in student.names]
    assert sum(blocks) ** 0.5 == pytest.approx(total, rel=1e-4)


def test_loss_terms_are_summed_over_samples(batch: Batch, make_config: MakeConfig) -> None:
    teacher = FrozenTeacher(plain_network(1))
    step = step_of(plain_network(0), make_config())
    terms = KD(make_config().distill)(plain_network(0), *batch, teacher(batch[0]))
    update(step, teacher, batch, [9, 7], 0.1)
    sums = step.losses.flush()
    assert sums.pop(SAMPLES) == 16
    assert sums == {name: pytest.approx(value.item(), rel=1e-5) for name, value in terms.items()}


@pytest.mark.parametrize("where", ["teacher", "logits", "all pictures", "loss"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_leaves_no_trace(
    where: str,
    bad: float,
    student: BlockNetwork,
    teacher: FrozenTeacher,
    batch: Batch,
    make_config: MakeConfig,
) -> None:
    """What test_faults.py, which has each place once, leaves out."""
    config = make_config(train={"observe_every": 1, "clip": 1.0})
    method = Breakable(method_of(config.distill, student, [(0, 5)]))
    step = step_of(student, config, method=method)
    update(step, teacher, batch, [16], 0.1)
    before = owned(step, student)

    images, labels = batch
    outputs = teacher(images)
    if where == "all pictures":
        images = images * bad
    if where == "teacher":
        outputs = TeacherOutputs(outputs.features, outputs.logits + bad)
    if where == "loss":
        method.term, method.factor = LOSS, bad
    handle = None
    if where == "logits":
        handle = student.network.fc.register_forward_hook(lambda *a: a[2] * bad)
    step.accumulate(images[:8], labels[:8], teacher(batch[0][:8]), update_size=16, last=False)
    step.accumulate(images, labels, outputs, update_size=16, last=True)
    if handle is not None:
        handle.remove()
    step.finish(0.1)

    assert owned(step, student) == before
    assert step.health.flush().total == 1


def test_state_of_another_device_is_taken_without_its_settings_for_graphs(
    student: BlockNetwork, make_config: MakeConfig
) -> None:
    """AdamW captured on a GPU, going on on a CPU; the other way round it could not be captured."""
    step = step_of(student, make_config(), {"name": "adamw", "lr": 0.1})
    shared = step.shared_state()
    for group in shared["optimizer"]["param_groups"]:
        group["capturable"] = True
    step.load(shared, step.own_state())
    assert [group["capturable"] for group in step.optimizer.param_groups] == [False]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_update_that_is_abandoned_does_not_enter_the_next(
    precision: str,
    student: BlockNetwork,
    teacher: FrozenTeacher,
    batch: Batch,
    make_config: MakeConfig,
) -> None:
    """As where its capture breaks off."""
    twin = copy.deepcopy(student)
    step, other = (step_of(s, make_config(train={"precision": precision})) for s in (student, twin))
    for one in (step, other):
        update(one, teacher, batch, [16], 0.1)
    before = copy.deepcopy(student.state_dict())
    accumulate(step, teacher, batch, [16])
    for parameter in student.parameters():
        assert parameter.grad is not None
        parameter.grad.fill_(7.0)  # a capture has written nothing there
    step.abandon()
    student.load_state_dict(before)  # nor to the running statistics
    for one in (step, other):
        update(one, teacher, batch, [8, 8], 0.1)
    assert step.losses.flush()[SAMPLES] == 16 * (2 - step.health.flush().total)
    assert_equal(student.state_dict(), twin.state_dict())


def test_the_first_update_may_be_skipped(
    student: BlockNetwork, teacher: FrozenTeacher, batch: Batch, make_config: MakeConfig
) -> None:
    """Fused SGD without a momentum buffer would read uninitialised memory afterwards."""
    step = step_of(student, make_config())
    for parameter in student.parameters():
        assert step.optimizer.state[parameter]["momentum_buffer"].abs().sum() == 0
    update(step, teacher, (batch[0] * float("nan"), batch[1]), [16], 0.1)
    update(step, teacher, batch, [16], 0.1)
    assert all(value.isfinite().all() for value in weights(student).values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_trains_in_every_precision_of_a_cpu(
    precision: str,
    student: BlockNetwork,
    teacher: FrozenTeacher,
    batch: Batch,
    make_config: MakeConfig,
) -> None:
    step = step_of(student, make_config(train={"precision": precision}))
    losses = []
    for _ in range(12):
        update(step, teacher, batch, [16], 0.05)
        losses.append(step.losses.flush()[LOSS])
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.dtype == torch.float32 for p in student.parameters())


def test_a_step_goes_on_from_its_state(
    student: BlockNetwork, teacher: FrozenTeacher, batch: Batch, make_config: MakeConfig
) -> None:
    step = step_of(student, make_config())
    update(step, teacher, batch, [16], 0.1)
    again = copy.deepcopy(student)
    resumed = step_of(again, make_config())
    resumed.load(*copy.deepcopy((step.shared_state(), step.own_state())))
    update(step, teacher, batch, [16], 0.05)
    update(resumed, teacher, batch, [16], 0.05)
    assert all(torch.equal(v, weights(again)[n]) for n, v in weights(student).items())
