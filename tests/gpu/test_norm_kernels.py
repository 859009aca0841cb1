"""BatchNorm's own kernels on a CUDA device, at the sizes of a ResNet18."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from tests.gpu.stepping import CUDA, Setup
from trainable.networks import norm_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Warning. Profiler clears events"),
]

SHAPES = [(128, 64, 32), (128, 128, 16), (128, 256, 8), (128, 512, 4), (33, 160, 31), (64, 2048, 4)]
BOUNDS = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def pictures(batch: int, channels: int, side: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(CUDA).manual_seed(seed)
    x = torch.randn(batch, channels, side, side, generator=generator, device=CUDA)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def numbers_of(channels: int) -> list[Tensor]:
    """γ, β and the running statistics."""
    weight = torch.linspace(0.5, 2, channels, device=CUDA)
    mean = torch.zeros(channels, device=CUDA)
    return [weight, weight - 1, mean, mean + 1]


def forward_and_backward(x: Tensor, shortcut: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    weight, bias, *running = numbers_of(x.shape[1])
    found = norm_kernels.statistics(x, weight, bias, *running, None, 0.1, 1e-5)
    y = norm_kernels.normalised(x, shortcut, found, True)
    return y, *norm_kernels.gradients(x, y, dy, found, True, True), *running


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_outputs_and_gradients_are_those_of_double_precision(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x, shortcut, dy = (pictures(*shape, seed, dtype) for seed in range(3))
    y, of_x, of_shortcut, of_channels, mean, variance = forward_and_backward(x, shortcut, dy)
    weight, bias, *running = (tensor.double() for tensor in numbers_of(shape[1]))
    wide = [tensor.double().requires_grad_() for tensor in (x, shortcut, weight, bias)]
    exact = F.batch_norm(wide[0], *running, wide[2], wide[3], True, 0.1, 1e-5) + wide[1]
    # What is 0 to the rounding passes here or there: the gradient is that of what passed here.
    exact.backward(torch.where(y > 0, dy, 0).double())
    grads = [tensor.grad for tensor in wide]
    found = (y, of_x, of_shortcut, *of_channels, mean, variance)
    for one, other in zip(found, (exact.relu(), *grads, *running), strict=True):
        assert other is not None
        assert (one.double() - other).norm() < BOUNDS[dtype] * other.norm() + 1e-6


def test_streams_do_not_disturb_each_other() -> None:
    """Each has counts of its own of the programs that have ended."""
    inputs = [
        [pictures(128, 64, 16, 3 * number + part, torch.float16) for part in range(3)]
        for number in range(3)
    ]
    expected = [forward_and_backward(*own) for own in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(100):
        for stream, own, results in zip(streams, inputs, found, strict=True):
            with torch.cuda.stream(stream):
                results.append(forward_and_backward(*own))
    torch.cuda.synchronize()
    for results, once in zip(found, expected, strict=True):
        for result in results:
            assert all(map(torch.equal, result, once))


def kernels_of(setup: Setup) -> list[str]:
    for _ in range(4):
        setup.update()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        setup.update()
        torch.cuda.synchronize()
    return [event.key for event in seen.key_averages()]


def is_torchs_backward(name: str) -> bool:
    return "bn_bw" in name or "batch_norm_backward" in name


@pytest.mark.parametrize("compiles", [False, True])
def test_a_captured_update_has_them_in_place_of_torchs_and_trains_alike(compiles: bool) -> None:
    def losses(*, own: bool) -> tuple[list[float], list[Tensor], list[str]]:
        setup = Setup(graph=True, precision="bf16", observe_every=1000)
        if own:
            setup.prepare(compiles=compiles)
        sums: list[float] = []
        for _ in range(12):
            setup.update()
            sums.append(float(setup.step.losses.state_dict()["sums"].max()))
        statistics = [b.clone() for b in setup.student.buffers() if b.is_floating_point()]
        return sums, statistics, kernels_of(setup)

    mine, statistics, names = losses(own=True)
    theirs, expected, others = losses(own=False)
    assert mine == pytest.approx(theirs, rel=2e-2)
    for one, other in zip(statistics, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.05)
    assert any("norm_gradient_sums" in name for name in names)
    assert not any("norm_gradient_sums" in name for name in others)
    # The teacher has torch's still, in the forward alone.
    assert any(is_torchs_backward(name) for name in others)
    assert not any(is_torchs_backward(name) for name in names)
