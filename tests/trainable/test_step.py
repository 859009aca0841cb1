"""One optimizer update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trainable.config import OptimConfig, TrialConfig
from trainable.distill.kd import KD
from trainable.distill.objective import Method, Objective, method_of
from trainable.distill.terms import LOSS
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import SAMPLES, Step
from trainable.networks.blocks import BlockNetwork, Layers
from trainable.networks.teacher import FrozenTeacher, TeacherOutputs

Batch = tuple[Tensor, Tensor]
MakeConfig = Callable[..., TrialConfig]
CPU = torch.device("cpu")


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
    return BlockNetwork(Layers(network, tuple(network.named_children()), ("act",)))


def step_of(
    student: BlockNetwork,
    config: TrialConfig,
    optim: dict[str, Any] | None = None,
    method: Method | None = None,
) -> Step:
    method = method or method_of(config.distill, student, [(0, len(student))])
    objective = Objective(student, method).train()
    settings = OptimConfig.model_validate(optim or {"lr": 0.1})
    optimizer = build_optimizer(settings, objective.parameters(), CPU)
    return Step(objective, optimizer, config.train, CPU)


def update(step: Step, teacher: FrozenTeacher, batch: Batch, parts: list[int], lr: float) -> None:
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
    step.finish(lr)


def weights(student: BlockNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}


@pytest.mark.parametrize("parts", [[8, 8], [4, 4, 4, 4], [2] * 8, [5, 11], [7, 7, 2]])
def test_accumulation_weighs_every_sample_alike(
    parts: list[int], batch: Batch, make_config: MakeConfig
) -> None:
    config = make_config()
    teacher = FrozenTeacher(plain_network(1))
    whole, split = plain_network(0), plain_network(0)
    update(step_of(whole, config), teacher, batch, [16], 0.1)
    update(step_of(split, config), teacher, batch, parts, 0.1)
    for name, value in weights(whole).items():
        assert (weights(split)[name] - value).abs().max() <= 1e-6, name


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


def test_clipping_bounds_the_global_norm_and_is_recorded(
    batch: Batch, make_config: MakeConfig
) -> None:
    teacher = FrozenTeacher(plain_network(1))
    free = step_of(plain_network(0), make_config(), {"lr": 1.0, "momentum": 0.0, "weight_decay": 0})
    update(free, teacher, batch, [16], 1.0)
    sums = free.gradients.flush()
    assert sums["clipped"] == 0
    limit = sums["norm"] / 3
    student = plain_network(0)
    config = make_config(train={"clip": limit})
    before = weights(student)
    step = step_of(student, config, {"lr": 1.0, "momentum": 0.0, "weight_decay": 0})
    update(step, teacher, batch, [16], 1.0)
    moved = [(value - before[name]).square().sum() for name, value in weights(student).items()]
    assert torch.stack(moved).sum().sqrt().item() == pytest.approx(limit, rel=1e-4)
    clipped = step.gradients.flush()
    assert clipped["clipped"] == 1
    assert clipped["norm"] == pytest.approx(sums["norm"], rel=1e-5)


def test_gradient_norms_are_those_of_torch(
    student: BlockNetwork, teacher: FrozenTeacher, batch: Batch, make_config: MakeConfig
) -> None:
    step = step_of(student, make_config())
    step.accumulate(*batch, teacher(batch[0]), update_size=16, last=True)
    norms = step.membership.gradient_norms()
    total = torch.nn.utils.get_total_norm([p.grad for p in student.parameters()])
    torch.testing.assert_close(norms.total, total)
    for index, (_, parameters) in enumerate(student.block_parameters()):
        block = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.testing.assert_close(norms.blocks[index], block)


def test_travelled_distance_is_what_the_parameters_moved(
    student: BlockNetwork, teacher: FrozenTeacher, batch: Batch, make_config: MakeConfig
) -> None:
    step = step_of(student, make_config(train={"observe_every": 1}))
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    update(step, teacher, batch, [16], 0.1)
    names = {id(p): n for n, p in student.named_parameters()}
    sums = step.distances.flush()
    for block, parameters in student.block_parameters():
        moved = [(p.detach() - before[names[id(p)]]).square().sum() for p in parameters]
        assert sums[block] == pytest.approx(torch.stack(moved).sum().sqrt().item(), rel=1e-4)
    size = torch.stack([p.square().sum() for p in before.values()]).sum().sqrt()
    total = sum(sums[block] ** 2 for block, _ in student.block_parameters()) ** 0.5
    assert sums["ratio"] == pytest.approx(total / size.item(), rel=1e-4)


def test_loss_terms_are_summed_over_samples(batch: Batch, make_config: MakeConfig) -> None:
    teacher = FrozenTeacher(plain_network(1))
    step = step_of(plain_network(0), make_config())
    terms = KD(make_config().distill)(plain_network(0), *batch, teacher(batch[0]))
    update(step, teacher, batch, [9, 7], 0.1)
    sums = step.losses.flush()
    assert sums.pop(SAMPLES) == 16
    assert sums == {name: pytest.approx(value.item(), rel=1e-5) for name, value in terms.items()}


class BrokenLoss:
    """A method whose loss is not finite on demand, though its gradient is."""

    def __init__(self, method: Method) -> None:
        self.method, self.extra = method, 0.0

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        terms = self.method(*inputs)
        return {**terms, LOSS: terms[LOSS] + self.extra}


@pytest.mark.parametrize("where", ["input", "teacher", "logits", "loss", "gradient", "variance"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_leaves_no_trace(
    where: str,
    bad: float,
    student: BlockNetwork,
    teacher: FrozenTeacher,
    batch: Batch,
    make_config: MakeConfig,
) -> None:
    config = make_config(train={"observe_every": 1, "clip": 1.0})
    method = BrokenLoss(method_of(config.distill, student, [(0, 5)]))
    step = step_of(student, config, method=method)
    update(step, teacher, batch, [16], 0.1)
    before, optimizer = weights(student), state_bytes(step)
    sums = [dict(totals.flush()) for totals in (step.losses, step.gradients, step.distances)]
    assert all(any(s.values()) for s in sums)

    images, labels = batch
    images = images.clone()
    outputs = teacher(images)
    if where == "input":
        images[3] = bad
    if where == "variance":
        # Its square overflows to inf, 1/sqrt(inf) is 0, and loss and gradient stay finite.
        images = images * 1e25
    if where == "teacher":
        outputs = TeacherOutputs(outputs.features, outputs.logits + bad)
    handle = None
    if where == "gradient":
        handle = next(student.parameters()).register_hook(lambda g: g * bad)
    if where == "loss":
        method.extra = bad
    if where == "logits":
        handle = student.network.fc.register_forward_hook(lambda *a: a[2] * bad)
    step.accumulate(images[:8], labels[:8], teacher(batch[0][:8]), update_size=16, last=False)
    step.accumulate(images, labels, outputs, update_size=16, last=True)
    if handle is not None:
        handle.remove()
    step.finish(0.1)

    assert all(torch.equal(value, before[name]) for name, value in weights(student).items())
    assert state_bytes(step) == optimizer
    for totals in (step.losses, step.gradients, step.distances):
        assert not any(totals.flush().values())
    assert step.flush_skipped() == 1


def test_after_a_skipped_update_training_goes_on_as_if_it_had_not_been(
    make_config: MakeConfig, batch: Batch, teacher: FrozenTeacher, student: BlockNetwork
) -> None:
    import copy

    other = copy.deepcopy(student)
    faulty, clean = step_of(student, make_config()), step_of(other, make_config())
    broken = (batch[0] * float("nan"), batch[1])
    update(faulty, teacher, broken, [16], 0.1)
    for _ in range(3):
        update(faulty, teacher, batch, [16], 0.1)
        update(clean, teacher, batch, [16], 0.1)
    assert all(torch.equal(v, weights(other)[n]) for n, v in weights(student).items())


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
    import copy

    step = step_of(student, make_config())
    update(step, teacher, batch, [16], 0.1)
    again = copy.deepcopy(student)
    resumed = step_of(again, make_config())
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    update(step, teacher, batch, [16], 0.05)
    update(resumed, teacher, batch, [16], 0.05)
    assert all(torch.equal(v, weights(again)[n]) for n, v in weights(student).items())


def state_bytes(step: Step) -> list[bytes]:
    return [
        value.numpy().tobytes()
        for state in step.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
