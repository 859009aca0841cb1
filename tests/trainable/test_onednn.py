"""Gradients that oneDNN computes wrongly are right, and overwrite nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import trainable.networks  # noqa: F401

LAST = torch.channels_last
UNHARMED = """
import torch
import trainable.networks

torch.set_num_threads(1)
x, dy = torch.randn(64, 4, 8, 8), torch.randn(64, 8, 4, 4)
x, dy = (tensor.to(memory_format=torch.channels_last) for tensor in (x, dy))
weight = torch.randn(8, 4, 1, 1).to(memory_format=torch.channels_last).requires_grad_()
kept = []
for number in range(300):
    torch.conv2d(x, weight, stride=2).backward(dy)
    kept = [*kept[-50:], torch.empty(64 * (number % 37) + 1), bytes(number * 13 % 6000)]
"""


def gradients(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> tuple[Tensor, ...]:
    wanted = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    y = torch.nn.functional.conv2d(x, weight, bias, stride=stride)
    dy = torch.linspace(0, 1, y.numel()).view_as(y).to(y.dtype).contiguous(memory_format=LAST)
    return torch.autograd.grad(y, wanted, dy)


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 8, 12, 16, 24])
@pytest.mark.parametrize(("stride", "size"), [(2, 8), (2, 9), (3, 9), (1, 8)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gradients_are_those_of_double_precision(
    channels: int, stride: int, size: int, has_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(64, channels, size, size, generator=generator).to(memory_format=LAST)
    weight = torch.randn(8, channels, 1, 1, generator=generator).to(memory_format=LAST)
    bias = torch.zeros(8) if has_bias else None
    exact = gradients(x.double(), weight.double(), None if bias is None else bias.double(), stride)
    found = gradients(x, weight, bias, stride)
    assert len(found) == len(exact) == 2 + has_bias
    for one, other in zip(found, exact, strict=True):
        assert (one.double() - other).norm() <= 1e-5 * other.norm()


def test_it_is_in_place_whatever_the_cpu() -> None:
    """Where oneDNN has no such fault, values alone would not tell."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::convolution_backward", "CPU")


def test_only_what_is_wanted_is_computed() -> None:
    x = torch.randn(4, 4, 8, 8).to(memory_format=LAST)
    weight = torch.randn(8, 4, 1, 1).requires_grad_()
    torch.conv2d(x, weight, stride=2).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    x.requires_grad_()
    torch.conv2d(x, weight.detach(), stride=2).sum().backward()
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=LAST)


def test_one_number_is_the_stride_of_both_directions() -> None:
    x = torch.randn(4, 4, 8, 8).to(memory_format=LAST)
    weight = torch.randn(8, 4, 1, 1).requires_grad_()
    found, expected = (
        torch.autograd.grad(torch.conv2d(x, weight, stride=stride).square().sum(), weight)
        for stride in ((2,), (2, 2))
    )
    torch.testing.assert_close(found, expected)


def test_groups_and_one_dimension_are_as_before() -> None:
    x, weight = torch.randn(4, 6, 8, 8), torch.randn(8, 3, 1, 1).requires_grad_()
    row = torch.randn(4, 6, 9)
    of_row = torch.randn(8, 6, 1).requires_grad_()
    torch.conv2d(x, weight, stride=2, groups=2).square().sum().backward()
    torch.conv1d(row, of_row, stride=2).square().sum().backward()
    pairs = [
        (weight, torch.conv2d(x[:, :, ::2, ::2], weight, groups=2)),
        (of_row, torch.conv1d(row[:, :, ::2], of_row)),
    ]
    for parameter, y in pairs:
        (expected,) = torch.autograd.grad(y.square().sum(), parameter)
        torch.testing.assert_close(parameter.grad, expected)


def test_nothing_else_in_memory_is_overwritten() -> None:
    """Without the mend such a process is ended by the allocator, where the CPU has AVX2 and no AVX-512."""
    subprocess.run([sys.executable, "-c", UNHARMED], check=True, timeout=100)
