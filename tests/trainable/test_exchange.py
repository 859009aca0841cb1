"""How three ranks (gloo) exchange gradients: two would hide in which order they are summed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.shared_gradients import Halves, Offset, Scaled
from tests.trainable.stepping import PLAIN_SGD, noise, plain_network, weights
from tests.trainable.trials import CPU
from trainable import ranks
from trainable.config import DistillConfig, OptimConfig, TrainConfig
from trainable.distill.objective import Objective, method_of
from trainable.engine import exchange
from trainable.engine.exchange import Exchange, begin_alike
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import Step
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.zoo import Pictures, build
from trainable.plan import Group, initial_groups

RANKS, SIZE = 3, 4
STABLE = {"method": "stablekd", "alpha": 0.5, "decomposition": "5/1"}
METHODS = {"kd": {"method": "kd", "alpha": 0.5}, "stablekd": STABLE}


def wide_network(seed: int) -> BlockNetwork:
    """Of 4.7 MiB, here in two buckets."""
    torch.manual_seed(seed)
    built = build("mini_resnet_10_32", Pictures(10, 3, (8, 8)), path="student.model")
    return BlockNetwork(built.network, built.cuts)


class Trial:
    """A student on this rank, and what it learns from."""

    def __init__(
        self,
        student: BlockNetwork,
        teacher: BlockNetwork,
        distill: dict[str, Any],
    ) -> None:
        self.student, self.teacher, self.number = student, FrozenTeacher(teacher), 0
        config = DistillConfig.model_validate(distill)
        method = method_of(config, student, initial_groups(len(student), len(student)))
        self.objective = Objective(student, method).train()
        optim = OptimConfig.model_validate({**PLAIN_SGD, "lr": 0.1})
        optimizer = build_optimizer(optim, self.objective.parameters(), CPU)
        self.step = Step(self.objective, optimizer, TrainConfig(), CPU, classes=10)

    def update(self, count: int = 1) -> None:
        for _ in range(count):
            images, labels = noise(RANKS * self.number + ranks.rank(), SIZE)
            size = SIZE * RANKS
            self.step.accumulate(images, labels, self.teacher(images), update_size=size, last=True)
            self.step.finish(0.1)
            self.number += 1


def resumed_in_a_later_stage() -> dict[str, dict[str, Tensor]]:
    """Five updates, of which three with each block for itself; and the last two by another process."""
    later: tuple[Group, ...] = ((0, 2), (2, 5))
    whole = Trial(wide_network(0), wide_network(1), STABLE)
    whole.update(3)
    resumed = Trial(wide_network(2), wide_network(1), STABLE)
    resumed.student.load_state_dict(whole.student.state_dict())
    resumed.number = whole.number
    for trial in (whole, resumed):
        trial.objective.regroup(later)
        trial.update(2)
    return {"whole": weights(whole.student), "resumed": weights(resumed.student)}


def order_of(distill: dict[str, Any]) -> list[str]:
    """In an update: when buckets are sent, and when the first layer's gradient is there."""
    trial = Trial(wide_network(0), wide_network(1), distill)
    trial.update()
    found: list[str] = []
    begin = ranks.begin_sum_over_ranks

    def noting(tensors: Sequence[Tensor]) -> Any:
        found.append("bucket")
        return begin(tensors)

    first = next(trial.student.parameters())
    first.register_post_accumulate_grad_hook(lambda _: found.append("last gradient"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "begin_sum_over_ranks", noting)
        trial.update()
    return found


class Skipping(nn.Module):
    """A layer that a person's own network leaves out by turns: of every rank in update 2, of one in update 3."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Conv2d(3, 3, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        skips = self.calls == 2 or (self.calls == 3 and ranks.rank() == 1)
        return x if skips else x + self.layer(x)


def skipped() -> list[list[float]]:
    """The mean of the layer's weights, begun with and after each update."""
    torch.manual_seed(0)
    layers = nn.Sequential(Skipping(), nn.Flatten(), nn.Linear(3 * 64, 10))
    student = BlockNetwork(layers, ("1",))
    trial = Trial(student, plain_network(1), METHODS["kd"])
    found = [layers[0].layer.weight.flatten().tolist()]
    for _ in range(4):
        trial.update()
        found.append(layers[0].layer.weight.flatten().tolist())
    return found


class BrokenError(RuntimeError):
    """What breaks a capture off."""


class Unsent:
    """Stands for a sum that was captured: it has no effect."""

    def wait(self) -> None:
        raise AssertionError("nobody may wait for what does not run")


def broken_off() -> dict[str, dict[str, Tensor]]:
    """Weights after two updates, and after the same with a backward pass between that broke off half-way."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in ("whole", "broken"):
        trial = Trial(wide_network(0), wide_network(1), METHODS["kd"])
        trial.update()
        if name == "broken":
            sent = break_off(trial)
            assert sent == 1, "it shall break off between the two buckets"
        trial.update()
        parameters = trial.student.named_parameters()
        found[name] = {name: p.detach().clone() for name, p in parameters}
    return found


def break_off(trial: Trial) -> int:
    """How many buckets were sent until then."""
    sent: list[None] = []

    def begin(_: Sequence[Tensor]) -> Unsent:
        sent.append(None)
        return Unsent()

    def breaks(_: Tensor) -> None:
        raise BrokenError

    hook = next(trial.student.parameters()).register_hook(breaks)
    images, labels = noise(99, SIZE)
    outputs = trial.teacher(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "begin_sum_over_ranks", begin)
        with pytest.raises(BrokenError):
            trial.step.accumulate(images, labels, outputs, update_size=SIZE, last=True)
    hook.remove()
    trial.step.abandon()
    return len(sent)


def begun() -> list[float]:
    """Weights and statistics of a layer that every rank drew for itself."""
    torch.manual_seed(ranks.rank())
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    layers[1].running_mean[:] = torch.rand(4)
    layers.to(memory_format=torch.channels_last)
    begin_alike(layers)
    return [float(value) for tensor in layers.state_dict().values() for value in tensor.flatten()]


def _rank(rank: int, folder: str) -> None:
    exchange._BUCKET_BYTES = 4 * 2**20
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    found = {
        "stages": resumed_in_a_later_stage(),
        "order": {name: order_of(distill) for name, distill in METHODS.items()},
        "skipped": skipped(),
        "broken off": broken_off(),
        "begun": begun(),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One spawn for all tests."""
    folder: Path = tmp_path_factory.mktemp("exchange")
    run_on_ranks(_rank, str(folder), ranks=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_who_goes_on_in_a_later_stage_ends_in_the_same_bits(on_ranks: list[dict[str, Any]]) -> None:
    """Gradients come in another order in each stage; what stands where in a bucket must not follow it."""
    expected = on_ranks[0]["stages"]["whole"]
    parameters = dict(wide_network(0).named_parameters())
    for results in on_ranks:
        whole, resumed = results["stages"]["whole"], results["stages"]["resumed"]
        for name, value in whole.items():
            assert torch.equal(resumed[name], value), name
            if name in parameters:
                assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_ranks_exchange_while_the_backward_pass_goes_on(
    method: str, on_ranks: list[dict[str, Any]]
) -> None:
    for results in on_ranks:
        assert results["order"][method] == ["bucket", "last gradient", "bucket"]


def test_a_layer_may_be_left_out_by_all_ranks_or_by_one(on_ranks: list[dict[str, Any]]) -> None:
    start, first, second, third, fourth = on_ranks[0]["skipped"]
    assert first != start
    assert second == first
    assert third != second
    assert fourth != third
    assert all(results["skipped"] == on_ranks[0]["skipped"] for results in on_ranks)


def test_an_update_that_breaks_off_leaves_nothing_to_send(on_ranks: list[dict[str, Any]]) -> None:
    for results in on_ranks:
        whole, broken = results["broken off"]["whole"], results["broken off"]["broken"]
        assert all(torch.equal(broken[name], value) for name, value in whole.items())


def test_all_ranks_begin_with_the_firsts_weights(on_ranks: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3).weight.detach()
    for results in on_ranks:
        assert results["begun"] == on_ranks[0]["begun"]
        assert results["begun"][: first.numel()] == first.flatten().tolist()


class Done:
    def wait(self) -> None: ...


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were another rank with the same pictures."""

    def begin(tensors: Sequence[Tensor]) -> Done:
        for tensor in tensors:
            tensor.mul_(2)
        return Done()

    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "begin_sum_over_ranks", begin)


def test_what_is_sent_when_the_backward_pass_is_over_is_little() -> None:
    sizes = [100_000, 100_000, 100_000, 1_000_000, 3_000_000, 5_000_000]
    parameters = [nn.Parameter(torch.empty(size, device="meta")) for size in sizes]
    found = [[p.numel() for p in bucket] for bucket in exchange._shared_out(parameters)]
    assert found == [[5_000_000, 3_000_000], [1_000_000, 100_000], [100_000, 100_000]]


@pytest.mark.usefixtures("doubled")
def test_sums_lie_as_their_parameters_do() -> None:
    """Of every layout and type."""
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5, 3)).to(
        memory_format=torch.channels_last
    )
    parameters = [*layers.parameters(), nn.Parameter(torch.ones(3, dtype=torch.float64))]
    exchange = Exchange(parameters)
    for _ in range(2):
        images = torch.randn(4, 3, 3, 3)
        loss = layers(images).square().sum() + parameters[-1].sum()
        expected = torch.autograd.grad(loss, parameters, retain_graph=True)
        with exchange.at_work():
            loss.backward()
        exchange.finish()
        for parameter, own in zip(parameters, expected, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, 2 * own)
            assert parameter.grad.stride() == parameter.stride()
            parameter.grad = None


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("last_bytes", [0, 64, 2**20])
@pytest.mark.parametrize("kind", [Offset, Halves, Scaled])
def test_a_sum_changes_no_other_gradient(
    kind: type[nn.Module], last_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the parameters are shared out; at 64 bytes, an offset is sent before its layer has its gradient."""
    monkeypatch.setattr(exchange, "_LAST_BYTES", last_bytes)
    torch.manual_seed(0)
    network, x = kind(), torch.randn(1, 3)
    parameters = list(network.parameters())
    expected = torch.autograd.grad(network(x).sin().sum(), parameters)
    found = Exchange(parameters)
    with found.at_work():
        network(x).sin().sum().backward()
    found.finish()
    for parameter, own in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 2 * own)


def test_what_nothing_else_holds_is_summed_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one matrix, too, which the others of its bucket hold."""
    sent: list[int] = []

    def begin(tensors: Sequence[Tensor]) -> Done:
        sent.extend(tensor.data_ptr() for tensor in tensors)
        return Done()

    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "begin_sum_over_ranks", begin)
    network = Scaled()
    parameters, made = list(network.parameters()), list[int]()
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: made.append(p.grad.data_ptr()))
    found = Exchange(parameters)
    with found.at_work():
        network(torch.randn(2, 3)).sum().backward()
    found.finish()
    assert sorted(sent) == sorted(made)


@pytest.mark.usefixtures("doubled")
def test_a_bucket_is_not_sent_before_all_of_a_gradient_is_there() -> None:
    """Reentrant checkpointing runs a backward pass within the other, and gives a shared layer two gradients."""
    layer = nn.Linear(3, 3)
    exchange, x = Exchange(list(layer.parameters())), torch.randn(2, 3, requires_grad=True)
    for _ in range(2):
        x = checkpoint(layer, x, use_reentrant=True)
    with exchange.at_work(), pytest.raises(RuntimeError, match="one gradient, got two"):
        x.sum().backward()
