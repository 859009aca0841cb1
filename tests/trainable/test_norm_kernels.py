"""BatchNorm's own CUDA kernels, interpreted on the CPU, and the rewriting that puts them into a block."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.stepping import step_of
from tests.trainable.trials import MakeConfig
from trainable import ranks
from trainable.compiled import Compiler
from trainable.config import BatchNormConfig
from trainable.engine import step as step_module
from trainable.engine.guard import Guard
from trainable.networks import joined_norm, norm_graph, peers, sync_batchnorm
from trainable.networks.blocks import BlockNetwork
from trainable.networks.joined_norm import Exchanges
from trainable.networks.norm_graph import (
    backend_of,
    has_kernels,
    own_kernels,
    own_kernels_and_inductor,
)
from trainable.networks.norms import with_norms
from trainable.networks.recompute import apply
from trainable.networks.sync_batchnorm import SyncBatchNorm, take_own_kernels
from trainable.networks.zoo import Pictures, build

pytest.importorskip("triton")
from trainable.networks import norm_kernels

CPU = torch.device("cpu")


def skip_unless_interpreted() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton interprets nothing here; tests/gpu has them")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The launchers of kernels that Triton interprets."""
    skip_unless_interpreted()
    monkeypatch.setattr(joined_norm, "_DEVICES", "cpu")
    joined_norm._is_tried.cache_clear()
    return norm_kernels


@pytest.fixture(autouse=True)
def fresh() -> Generator[None]:
    yield
    torch._dynamo.reset()


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def off(found: Tensor, exact: Tensor) -> float:
    exact = exact.detach()
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("shape", [(4, 64, 8, 8), (3, 24, 7, 5), (2, 160, 12, 12)])
@pytest.mark.parametrize(
    ("added", "relu"), [(False, False), (False, True), (True, False), (True, True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_outputs_and_gradients_are_those_of_double_precision(
    shape: tuple[int, ...], added: bool, relu: bool, dtype: torch.dtype, kernels: Any
) -> None:
    x, dy, shortcut = (pictures(*shape, seed=seed, dtype=dtype) for seed in range(3))
    x += 3
    weight, bias = torch.linspace(0.5, 2, shape[1]), torch.linspace(-1, 1, shape[1])
    mean, variance, count = torch.zeros(shape[1]), torch.ones(shape[1]), torch.tensor(4)
    found = kernels.statistics(x, weight, bias, mean, variance, count, 0.1, 1e-5)
    y = kernels.normalised(x, shortcut if added else None, found, relu)
    of_x, of_shortcut, of_channels = kernels.gradients(x, y, dy, found, added, relu)

    wide = [tensor.double().requires_grad_() for tensor in (x, weight, bias, shortcut)]
    running = torch.zeros(shape[1]).double(), torch.ones(shape[1]).double()
    exact = F.batch_norm(wide[0], *running, wide[1], wide[2], True, 0.1, 1e-5)
    exact = exact + wide[3] if added else exact
    exact = exact.relu() if relu else exact
    exact.backward(torch.where(y > 0, dy, 0).double() if relu else dy.double())
    bound = 2e-6 if dtype == torch.float32 else 5e-4
    pairs = [(y, exact), (of_x, wide[0].grad), (of_channels[0], wide[1].grad)]
    pairs += [(of_channels[1], wide[2].grad), (mean, running[0]), (variance, running[1])]
    pairs += [(of_shortcut, wide[3].grad)] if added else []
    for one, other in pairs:
        assert off(one, other) < bound
    assert (y.dtype, of_x.dtype, int(count)) == (dtype, dtype, 5)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_small_deviation_beside_a_large_mean_is_kept(kernels: Any) -> None:
    x = pictures(4, 16, 8, 8) * 1e-2 + 100
    ones, zeros = torch.ones(16), torch.zeros(16)
    found = kernels.statistics(x, ones, zeros, zeros.clone(), ones.clone(), None, 0.1, 1e-12)
    exact = x.double().var((0, 2, 3), correction=0).rsqrt()
    assert off(found[1], exact) < 1e-3


@pytest.mark.parametrize("at", [(0, 0, 0), (2, 4, 3)])
def test_a_value_that_is_far_off_costs_no_digits(at: tuple[int, ...], kernels: Any) -> None:
    """Sums about it would lose the others."""
    x = pictures(8, 16, 16, 16)
    picture, row, column = at
    x[picture, :, row, column] = 300
    ones, zeros = torch.ones(16), torch.zeros(16)
    found = kernels.statistics(x, ones, zeros, zeros.clone(), ones.clone(), None, 0.1, 1e-5)
    exact = x.double().var((0, 2, 3), correction=0).add(1e-5).rsqrt()
    assert off(found[1], exact) < 2e-6


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered"
)  # of NumPy, in which Triton interprets
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen_behind_the_relu(value: float, kernels: Any) -> None:
    x = pictures(2, 16, 4, 4)
    x[1, 3, 0, 0] = value
    ones, zeros = torch.ones(16), torch.zeros(16)
    mean, variance = zeros.clone(), ones.clone()
    found = kernels.statistics(x, ones, zeros, mean, variance, None, 0.1, 1e-5)
    y = kernels.normalised(x, None, found, True)
    assert not mean[3].isfinite()
    assert y[:, 3].isnan().any()
    assert y[:, :3].isfinite().all()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
def test_a_variance_beyond_fp32_is_not_finite(kernels: Any) -> None:
    """Its sums overflow, and what they differ by is no number: `Guard.largest` looks for it."""
    x = pictures(4, 16, 8, 8)
    x[:, 3] *= 1e20
    ones, zeros = torch.ones(16), torch.zeros(16)
    mean, variance = zeros.clone(), ones.clone()
    kernels.statistics(x, ones, zeros, mean, variance, None, 0.1, 1e-5)
    assert not variance[3].isfinite()
    assert (variance.isfinite().sum(), mean.isfinite().all()) == (15, True)


def test_the_same_pictures_give_the_same_bits(kernels: Any) -> None:
    """Programs end in any order, which the interpreter does not show: here that no sum is left for the next."""
    x, ones, zeros = pictures(4, 64, 8, 8), torch.ones(64), torch.zeros(64)
    one, other = (
        kernels.statistics(x, ones, zeros, zeros.clone(), ones.clone(), None, 0.1, 1e-5)
        for _ in range(2)
    )
    assert torch.equal(one, other)


def last(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).to(memory_format=torch.channels_last).train()


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Additions(nn.Module):
    """What looks like a shortcut, and is none that a kernel can take in."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(3)])
        self.bias = nn.Parameter(torch.ones(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        broadcast = (self.norms[0](x) + self.bias).relu()
        used_twice = self.norms[1](broadcast)
        doubled = self.norms[2](used_twice)
        return (doubled + doubled).relu() + used_twice


class InPlace(nn.Module):
    """What an addition takes or gives is changed afterwards, or is read elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        read_later = x * 2
        other = read_later
        other += self.norms[0](x)
        changed_later = x * 3
        sum = self.norms[1](x) + changed_later
        changed_later.relu_()
        usual = self.norms[2](x)
        usual += x
        return other.relu() + read_later + sum.relu() + changed_later + usual.relu()


class Twice(nn.Module):
    """Inductor would take the two for one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm2d(16), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).relu() + self.norm(x).tanh() + self.other(x)


class Between(nn.Module):
    """What comes between BatchNorm and an addition would see another BatchNorm if it took place there."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        moved, counted, fixed = self.norms
        a = moved(x)
        a = (a + x * moved.running_var.view(-1, 1, 1)).relu()
        b = counted(x)
        b = (b + x * counted.num_batches_tracked).relu()
        with torch.no_grad():
            c = fixed(x)
        return a + b + (c + x * 4).relu()


class Recomputed(nn.Module):
    """One that has torch compute it again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = BasicBlock(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return found


BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "residual": (lambda: last(BasicBlock(16, 16), BasicBlock(16, 32, 2, shortcut(16, 32, 2))), 5),
    "bottleneck": (lambda: last(Bottleneck(16, 8, 1, shortcut(16, 32, 1))), 4),
    "no ReLU": (lambda: last(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Tanh()), 1),
    "additions": (lambda: last(Additions()), 3),
    "in place": (lambda: last(InPlace()), 3),
    "twice": (lambda: last(Twice()), 1),
    "between": (lambda: last(Between()), 3),
}


def recorded(backend: norm_graph.Backend) -> tuple[norm_graph.Backend, list[fx.GraphModule]]:
    """The backend, and what it has rewritten."""
    seen: list[fx.GraphModule] = []

    def run(module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        seen.append(module)
        return backend(module, inputs)

    return run, seen


def norms_of(module: fx.GraphModule) -> int:
    return sum(node.target is joined_norm.joined for node in module.graph.nodes)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_computes_what_it_did(name: str) -> None:
    make, count = BLOCKS[name]
    torch.manual_seed(0)
    own = make()
    plain = copy.deepcopy(own)
    backend, seen = recorded(own_kernels)
    run: Any = torch.compile(lambda x: own(x), backend=backend, dynamic=False, fullgraph=True)
    for seed in range(2):
        mine, theirs = (pictures(4, 16, 8, 8, seed=seed).requires_grad_() for _ in range(2))
        y, exact = run(mine), plain(theirs)
        torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)
        slope = torch.randn_like(exact)
        y.backward(slope)
        exact.backward(slope)
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    for (key, one), other in zip(
        own.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=key)
    for one, other in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    assert [norms_of(module) for module in seen] == [count]


@pytest.mark.usefixtures("kernels")
def test_a_block_that_torch_computes_again_runs_as_it_is_written(caplog: Any) -> None:
    """Dynamo's record of it is for compilers, and does not train operation by operation."""
    torch.manual_seed(0)
    own = last(Recomputed())
    plain = copy.deepcopy(own)
    compiler = Compiler(4, layers=own_kernels)
    with compiler.at_work(4):
        y, exact = Applied(own)(pictures(4, 16, 8, 8)), plain(pictures(4, 16, 8, 8))
        y.sum().backward()
    exact.sum().backward()
    torch.testing.assert_close(y, exact)
    for one, other in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert compiler.is_refused
    assert "tag_activation_checkpoint" in caplog.text


@pytest.mark.usefixtures("kernels")
def test_a_hook_of_a_later_layer_is_called() -> None:
    """What is compiled serves later trials, whose layers are alike but for their hooks."""
    blocks = [last(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)) for _ in range(2)]
    blocks[1][0].register_forward_hook(lambda _, __, y: y.abs())
    plain = copy.deepcopy(blocks[1])
    with Compiler(4, layers=own_kernels).at_work(4):
        for block in blocks:
            y = Applied(block)(pictures(4, 16, 8, 8))
    torch.testing.assert_close(y, plain(pictures(4, 16, 8, 8)))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm2d(16).eval(), (4, 16, 8, 8)),
        (nn.BatchNorm2d(16, affine=False), (4, 16, 8, 8)),
        (nn.BatchNorm2d(16, track_running_stats=False), (4, 16, 8, 8)),
        (nn.BatchNorm2d(12), (4, 12, 8, 8)),
        (nn.BatchNorm1d(16), (4, 16)),
        (nn.BatchNorm2d(16).double(), (4, 16, 8, 8)),
    ],
)
def test_a_norm_that_the_kernels_cannot_take_stays_torchs(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    backend, seen = recorded(own_kernels)
    run: Any = torch.compile(lambda x: norm(x), backend=backend, dynamic=False, fullgraph=True)
    x = torch.randn(shape, dtype=next(iter([*norm.parameters(), torch.ones(1)])).dtype)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    plain = copy.deepcopy(norm)
    torch.testing.assert_close(run(x), plain(x))
    assert [norms_of(module) for module in seen] == [0]


@pytest.mark.usefixtures("kernels")
def test_pictures_that_lie_channels_first_stay_with_torch() -> None:
    norm = nn.BatchNorm2d(16)
    backend, seen = recorded(own_kernels)
    run: Any = torch.compile(lambda x: norm(x), backend=backend, dynamic=False, fullgraph=True)
    run(torch.randn(4, 16, 8, 8))
    assert [norms_of(module) for module in seen] == [0]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("kernels")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, at what a block is given
def test_inductor_compiles_what_is_beside_the_kernels() -> None:
    """Also where the running statistics lie in one tensor, as in a trial."""
    torch.manual_seed(0)
    own = BLOCKS["residual"][0]()
    for number, buffer in enumerate(own.buffers()):
        if buffer.is_floating_point():
            buffer.copy_(torch.linspace(1, 2, len(buffer)) + number)
    plain = copy.deepcopy(own)
    Guard(own)
    assert all(buffer.data_ptr() % 16 == 0 for buffer in own.buffers())
    backend, seen = recorded(own_kernels_and_inductor)
    run: Any = torch.compile(lambda x: own(x), backend=backend, dynamic=False, fullgraph=True)
    x = pictures(4, 16, 8, 8)
    y, exact = run(x), plain(x)
    torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)
    for output in (y, exact):
        output.square().sum().backward()
    for one, other in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    for one, other in zip(own.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert [norms_of(module) for module in seen] == [5]


@pytest.mark.parametrize(
    ("compiles", "own", "backend"),
    [
        (True, False, "inductor"),
        (False, False, None),
        (True, True, own_kernels_and_inductor),
        (False, True, own_kernels),
    ],
)
def test_blocks_are_rewritten_where_there_are_kernels(
    compiles: bool, own: bool, backend: Any
) -> None:
    assert backend_of(last(nn.BatchNorm2d(8)), compiles=compiles, own=own) is backend


@pytest.mark.usefixtures("kernels")
def test_there_are_kernels_for_batchnorm_on_devices_that_run_them() -> None:
    assert has_kernels(last(nn.BatchNorm2d(8)), CPU)
    assert not has_kernels(last(nn.LayerNorm(8)), CPU)
    assert not has_kernels(last(nn.BatchNorm2d(8)), torch.device("meta"))


@pytest.mark.parametrize("error", [RuntimeError("no C compiler"), ModuleNotFoundError("triton")])
def test_where_they_do_not_run_the_log_says_why_and_batchnorm_is_torchs(
    error: Exception, kernels: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(kernels, "statistics", fail)
    assert not has_kernels(last(nn.BatchNorm2d(8)), CPU)
    assert not has_kernels(last(nn.BatchNorm2d(8)), CPU)
    expected = f"BatchNorm runs in torch's own kernels: {type(error).__name__}: {error}"
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_a_lack_of_memory_is_the_trials(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(kernels, "statistics", fail)
    with pytest.raises(torch.OutOfMemoryError):
        has_kernels(last(nn.BatchNorm2d(8)), CPU)
    monkeypatch.undo()
    monkeypatch.setattr(joined_norm, "_DEVICES", "cpu")
    assert has_kernels(last(nn.BatchNorm2d(8)), CPU)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("compiles", "own"), [(False, True), (False, False), (True, True)])
def test_syncbatchnorm_has_its_kernels_in_micro_batches_of_any_size_or_never(
    compiles: bool, own: bool, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks whose sizes differ must not differ in kernels; dynamo cannot look into the project's."""
    torch.manual_seed(0)
    built = build("mini_resnet_10_8", Pictures(10, 3, (16, 16)), path="student.model")
    network = with_norms(built.network, BatchNormConfig(sync=True), workers=2)
    student = BlockNetwork(network, built.cuts)
    taken: list[nn.Module] = []
    monkeypatch.setattr(step_module, "take_own_kernels", lambda network, _: taken.append(network))
    step = step_of(student, make_config(distill={"method": "none"}))
    step.choose_kernels(compiles=compiles, own_norms=own)
    assert taken == ([student] if own and not compiles else [])


SHARES = (slice(5), slice(5, 7))


def sync_results(layer: nn.Module, share: slice) -> dict[str, Tensor]:
    """Of seven pictures whose means lie apart, this rank's part: outputs, gradients, statistics."""
    x = pictures(7, 24, 5, 4) * 3 + torch.arange(7.0).view(-1, 1, 1, 1)
    x = x[share].contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = layer.parameters()
    with torch.no_grad():
        weight.copy_(torch.linspace(0.5, 2, 24))
        bias.copy_(torch.linspace(-1, 1, 24))
    y = layer(x)
    y.backward(pictures(7, 24, 5, 4, seed=1)[share])
    found = {"y": y.detach(), "x": x.grad, "weight": weight.grad, "bias": bias.grad}
    layer.zero_grad()
    for name in ("weight", "bias"):
        ranks.sum_over_ranks(found[name])  # type: ignore[arg-type] # as a step does
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    return {**found, **buffers}  # type: ignore[dict-item]


class Applied(nn.Module):
    """A layer as a block of a student is: compiled, where that is asked for."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return apply([self.layer], x)


PEERS, UNREACHED = "own, by peers", "own, by NCCL since nothing reaches the other"
WAYS = ("torch's, compiled", "own, by NCCL", PEERS, UNREACHED)


def _rank(rank: int, folder: str, memory: list[Tensor]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = {way: list(trained(way, SHARES[rank], memory)) for way in WAYS}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(way: str, share: slice, memory: list[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Results of three batches."""
    layer, backend = SyncBatchNorm(24), "aot_eager" if "compiled" in way else None
    compiler = Compiler(5, layers=backend)  # rank 0's usual size; here rank 1 has fewer
    with pytest.MonkeyPatch.context() as patch, compiler.at_work(share.stop - (share.start or 0)):
        patch.setattr(joined_norm, "_DEVICES", "cpu")
        if way in (PEERS, UNREACHED):
            private = torch.zeros_like(memory[0])
            bases = [(each if way == PEERS else private).data_ptr() for each in memory]
            patch.setattr(peers, "_allocated", lambda *_: memory)
            patch.setattr(peers, "_shared", lambda _: peers._Shared(private, bases, 0))
            patch.setattr(sync_batchnorm, "_TRIES", 10**6 if way == PEERS else 10)
        if way == PEERS:
            patch.setattr(norm_kernels._kernels, "norm_moments", None)  # the other way's
        if "own" in way:
            take_own_kernels(layer, CPU)
            assert (layer.exchanges == Exchanges()) == (way != PEERS)
            patch.setattr(sync_batchnorm, "_Joined", None)  # torch's way
        for _ in range(3):
            yield sync_results(Applied(layer), share)
    assert not compiler.is_refused


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One spawn for all ways."""
    skip_unless_interpreted()
    folder = tmp_path_factory.mktemp("ranks")
    memory = [
        torch.zeros(2 * 2 * 5 * (24 + 32), dtype=torch.int64).share_memory_() for _ in range(2)
    ]
    run_on_ranks(_rank, str(folder), memory, ranks=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_together_are_batchnorm_of_the_joined_batch(
    way: str, kernels: Any, on_ranks: list[dict[str, Any]]
) -> None:
    """Also where one rank computes it as compiled and one as written, and in the third exchange by the same memory."""
    del kernels
    layer = Applied(nn.BatchNorm2d(24))
    for one, two in zip(*(results[way] for results in on_ranks), strict=True):
        for name, exact in sync_results(layer, slice(None)).items():
            found = torch.cat([one[name], two[name]]) if name in ("y", "x") else one[name]
            torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5, msg=name)
            if name not in ("y", "x"):
                assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize(("fails_at", "asked"), [(None, 2), (1, 1), (2, 2)])
def test_an_exchange_is_tried_once_all_ranks_have_compiled_it(
    fails_at: int | None, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank may be unable to compile it, or see nothing come: all of them then use NCCL."""
    tries: list[int | None] = []
    inbox = peers.Inbox(torch.zeros(2), torch.zeros(1), None)

    def ends_well(_: Exchanges, given: int | None, __: torch.device) -> bool:
        tries.append(given)
        return True

    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "on_any_rank", lambda is_so, _: is_so or len(tries) == fails_at)
    monkeypatch.setattr(peers, "inboxes", lambda lengths, _: [inbox] * len(lengths))
    monkeypatch.setattr(sync_batchnorm, "_ends_well", ends_well)
    layer = SyncBatchNorm(8)
    take_own_kernels(layer, CPU)
    assert tries == [None, sync_batchnorm._TRIES][:asked]
    assert layer.exchanges == (Exchanges(inbox, inbox) if fails_at is None else Exchanges())


def test_what_is_compiled_does_not_depend_on_how_often_a_kernel_looks() -> None:
    """Or it would be compiled again while the others wait."""
    names = ("norm_statistics_over_peers", "norm_gradient_sums")
    script = f"""
from trainable.networks import norm_triton
for name in {names}:
    print(*(p.name for p in getattr(norm_triton, name).params if p.do_not_specialize))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["tries", "tries"]
