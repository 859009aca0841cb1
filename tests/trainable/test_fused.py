"""A frozen network's forward in fewer kernels says what the network says."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainable.methods import PICTURES
from tests.trainable.trials import MakeConfig, train, untrained_teacher
from trainable.networks import fused as fused_module
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, load_teacher
from trainable.networks.folding import convolution_of
from trainable.networks.fused import _is_fused, distance, fused
from trainable.networks.record import Record
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.zoo import build

aten = torch.ops.aten

STATED = {torch.bfloat16: 0.02, torch.float16: 0.0025}
"""How far from fp32 docs/networks_and_methods.md says a teacher in half precision is at most (`distance`)."""
JOINED = [
    ("mini_resnet_10_4", 0, 9),
    ("resnet18", 0, 17),
    ("resnet50", 0, 49),
    ("resnext20_32x4d", 0, 19),
    ("wrn_10_1", 4, 3),  # half of its BatchNorms stand before the convolutions
]
"""Networks, their BatchNorms that are left, and their convolutions that have more in their kernel."""
has_half = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no convolutions in bf16 for this CPU",
)


class Operations(TorchDispatchMode):
    """Names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    def count(self, part: str) -> int:
        return sum(part in name for name in self.names)


def settled(network: nn.Module) -> nn.Module:
    """In eval mode, with running statistics and an affine part as training leaves them."""
    generator = torch.Generator().manual_seed(3)

    def drawn(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                if norm.running_mean is not None and norm.running_var is not None:
                    norm.running_mean.copy_(drawn(norm.running_mean, -0.5, 0.5))
                    norm.running_var.copy_(drawn(norm.running_var, 0.3, 3.0))
                if norm.affine:
                    norm.weight.copy_(drawn(norm.weight, 0.5, 1.5))
                    norm.bias.copy_(drawn(norm.bias, -0.5, 0.5))
    return network.eval()


def pictures(channels: int = 3, side: int = 8) -> Tensor:
    images = torch.randn(4, channels, side, side, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def operations(forward: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> Operations:
    with torch.no_grad(), Operations() as seen:
        forward(x)
    return seen


def assert_close(
    one: Callable[[Tensor], Sequence[Tensor]],
    other: Callable[[Tensor], Sequence[Tensor]],
    x: Tensor,
) -> None:
    with torch.no_grad():
        for mine, theirs in zip(one(x), other(x), strict=True):
            assert float((mine - theirs).norm() / theirs.norm()) < 1e-5


def network_of(name: str) -> BlockNetwork:
    torch.manual_seed(0)
    built = build(name, Pictures(10, 3, (32, 32)), path="teacher.model")
    return BlockNetwork(settled(built.network), built.cuts)


@pytest.mark.parametrize(("name", "norms", "joined"), JOINED)
def test_networks_say_the_same_in_fewer_kernels(name: str, norms: int, joined: int) -> None:
    network, images = network_of(name), pictures(side=32)
    found = fused(network.features, images)
    assert found is not None
    assert_close(found, network.features, images)
    seen = operations(found, images)
    assert seen.count("batch_norm") == norms
    assert seen.count("_convolution_pointwise") == joined


@has_half
@pytest.mark.parametrize(
    ("name", "norms", "joined"), [each for each in JOINED if each[0] != "resnet50"]
)
def test_in_half_precision_they_stay_within_the_stated_bound(
    name: str, norms: int, joined: int
) -> None:
    network, images = network_of(name), pictures(side=32)
    with torch.no_grad():
        exact = network.features(images)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        found = fused(network.features, images)
        assert found is not None
        seen = operations(found, images)
    assert seen.count("batch_norm") == norms
    assert seen.count("_convolution_pointwise") == joined
    assert seen.count("_to_copy") == 1, "of the pictures: weights are kept in half precision"
    outputs = found(images)
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    assert 1e-3 < distance(outputs, exact) < STATED[torch.bfloat16]


def test_a_cpu_without_half_precision_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fused_module.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False
    )
    network, images = network_of("mini_resnet_10_4"), pictures(side=32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert fused(network.features, images) is None
    assert fused(network.features, images) is not None


class Shared(nn.Module):
    """One convolution before two BatchNorms, each of which is another convolution with it; the first is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = F.relu(self.one(self.conv(x)))
        second = F.relu(self.two(self.conv(first)))
        return first, second


class TakenTwice(nn.Module):
    """What the convolution gives is taken by others than BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        z = F.relu(self.last(F.relu(self.norm(y))))
        return y, z + y


class InPlace(nn.Module):
    """Adds and rectifies in place, and adds a shortcut of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm, self.shift = nn.BatchNorm2d(4), nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(self.one(x))
        y += self.two(x)
        y.relu_()
        return (torch.relu_(self.norm(self.one(x)).add_(self.shift)), y)


class WithoutStatistics(nn.Module):
    """Its first BatchNorm takes those of the batch in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)
        self.last, self.kept = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (F.relu(self.kept(self.last(self.norm(self.conv(x))))),)


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(3, 3, 2, stride=2), nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (F.relu(self.last(F.relu(self.norm(self.up(x))))),)


@pytest.mark.parametrize(
    ("network", "norms"),
    [(Shared, 0), (TakenTwice, 1), (InPlace, 0), (WithoutStatistics, 1), (Transposed, 1)],
)
def test_odd_networks_say_the_same(network: type[nn.Module], norms: int) -> None:
    torch.manual_seed(0)
    made = settled(network())
    found = fused(made, pictures())
    assert found is not None
    assert_close(found, made, pictures())
    assert operations(found, pictures()).count("batch_norm") == norms


class Deciding(nn.Module):
    """Decides on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = F.relu(self.conv(x))
        return (y if y.mean() > 0 else -y,)


class Drawing(nn.Module):
    """Says something else each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (F.relu(self.conv(x)) * torch.rand(1),)


class DrawingAtAllTimes(nn.Module):
    """Draws so little that no comparison would show it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        noise = 1e-7 * torch.randn_like(self.conv.weight)
        return (F.relu(F.conv2d(x, self.conv.weight + noise)),)


class Counting(nn.Module):
    """Has a state that its forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        count = self.get_buffer("count").add_(1)
        return (F.relu(self.conv(x)) + 0 * count,)


class Plain(nn.Module):
    """Has nothing to fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.fc(x.flatten(1)),)


@pytest.mark.parametrize("network", [Deciding, Drawing, DrawingAtAllTimes, Counting, Plain])
def test_what_cannot_be_fused_is_left_alone(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    assert fused(network().eval(), pictures()) is None


@pytest.mark.parametrize("spoilt", [0, 1])
@pytest.mark.parametrize(("factor", "off"), [(float("nan"), "nan"), (1.5, "0.5")])
def test_what_would_say_something_else_is_not_used(
    spoilt: int,
    factor: float,
    off: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever output it is in."""
    torch.manual_seed(0)
    network = settled(Shared())
    finished = Record.finished

    def wrong(record: Record) -> Callable[[Tensor], Sequence[Tensor]]:
        right = finished(record)

        def run(x: Tensor) -> Sequence[Tensor]:
            outputs = list(right(x))
            outputs[spoilt] = outputs[spoilt] * factor
            return outputs

        return run

    monkeypatch.setattr(Record, "finished", wrong)
    assert fused(network, pictures()) is None
    (line,) = [record.message for record in caplog.records]
    assert line == (
        f"the teacher's layers are not fused: what they say would be {off} from fp32, where 0.0001 "
        "is allowed"
    )


def test_the_pictures_do_not_decide_whether_it_is_fused() -> None:
    network = settled(Shared())
    found = fused(network, pictures() * float("nan"))
    assert found is not None
    assert_close(found, network, pictures())


def test_a_trial_without_a_teacher_frees_the_one_before(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config()
    kept = weakref.ref(load_teacher(config, PICTURES, untrained_teacher(config, tmp_path)))
    plain = make_config(distill={"method": "none", "alpha": None}, train={"epochs": 1})
    train(plain, tmp_path / "trial")
    gc.collect()
    assert kept() is None


def teacher() -> FrozenTeacher:
    torch.manual_seed(0)
    built = build("mini_resnet_10_4", PICTURES, path="teacher.model")
    return FrozenTeacher(BlockNetwork(settled(built.network), built.cuts))


def test_a_teacher_takes_fewer_kernels_for_micro_batches_of_one_kind() -> None:
    frozen, images = teacher(), pictures(side=16)  # to 1×1 oneDNN of torch 2.11 would not
    before = frozen(images)
    weights = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen.fuse(images)
    after = frozen(images)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(after.features, before.features, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert mine.is_contiguous(memory_format=torch.channels_last)
    assert operations(frozen, images).count("batch_norm") == 0
    assert operations(frozen, images[:3]).count("batch_norm") == 12
    with torch.autocast("cpu", torch.bfloat16):
        assert operations(frozen, images).count("batch_norm") == 12
    state = frozen.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
    ids=["torch", "cuda", "cudnn", "cublas"],
)
def test_a_kept_teacher_that_found_no_memory_to_be_fused_is_fused_later(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, images = teacher(), pictures(side=16)

    def no_memory(*_: Any) -> None:
        """In the rewriting of a graph, whose interpreter tells of it in an error of its own."""
        raise RuntimeError("ShapeProp error for: node=convolution") from error

    with monkeypatch.context() as patch:
        patch.setattr(fused_module, "_join", no_memory)
        with pytest.raises(RuntimeError, match="ShapeProp"):
            frozen.fuse(images)
    assert operations(frozen, images).count("batch_norm") == 12
    frozen.fuse(images)
    assert operations(frozen, images).count("batch_norm") == 0


def test_a_network_that_cannot_be_fused_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frozen = teacher()

    def refuse(*_: Any) -> None:
        raise RuntimeError("an operator without a kernel\nand a trace")

    monkeypatch.setattr(fused_module, "_rewritten", refuse)
    for _ in range(2):
        frozen.fuse(pictures())
    lines = [(record.levelname, record.message) for record in caplog.records]
    said = "the teacher's layers are not fused: an operator without a kernel"
    assert lines == [("WARNING", said)]


def test_a_process_keeps_its_last_teacher(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    path = untrained_teacher(config, tmp_path)
    states: list[Tensor] = []
    found: list[FrozenTeacher] = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(load_teacher(config, PICTURES, path))
        states.append(torch.get_rng_state())
    assert found[0] is found[1]
    assert torch.equal(*states)
    path.write_bytes(path.read_bytes())  # written again: it could be another one
    assert load_teacher(config, PICTURES, path) is not found[0]


def test_a_stem_that_cudnn_does_not_fuse_is_left_as_it_is() -> None:
    """As on a CPU, which has none of cuDNN's kernels."""
    stem = nn.Conv2d(3, 8, 3, padding=1)
    record = Record(lambda x: (stem(x).relu(),), pictures())
    ShapeProp(record.module).propagate(pictures())
    (found,) = (c for node in record.nodes() if (c := convolution_of(node)) is not None)
    assert not _is_fused(found, record.value(found.weight))
