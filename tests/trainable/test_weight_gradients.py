"""Convolutions whose weight's gradient is computed beside the backward pass: what they compute is torch's."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.resnet import BasicBlock

from trainable.networks import weight_gradients
from trainable.networks.norm_graph import own_kernels
from trainable.networks.weight_gradients import Beside, awaited, conv2d


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """As in an update that is captured; the pictures that convolutions were asked about."""
    asked: list[Tensor] = []

    def is_captured(x: Tensor) -> bool:
        asked.append(x)
        return True

    monkeypatch.setattr(weight_gradients, "_is_captured", is_captured)
    return asked


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (1, 0), "dilation": (2, 1)},
    {"groups": 2},
    {"padding": "same"},
    {"bias": torch.ones(8)},
    {"stride": (2,), "padding": (1,)},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("of_x", [False, True])
def test_outputs_and_gradients_are_torchs(
    settings: dict[str, Any], autocast: bool, of_x: bool, captured: list[Tensor]
) -> None:
    found: list[list[Tensor | None]] = []
    for function in (torch.conv2d, conv2d):
        x = pictures(4, 6, 9, 9).requires_grad_(of_x)
        weight = pictures(8, 6 // settings.get("groups", 1), 3, 3, seed=1).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = function(input=x, weight=weight, **settings)
        with awaited():
            y.float().square().sum().backward()
        found.append([y, weight.grad, x.grad])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_weight_that_is_used_twice_and_in_two_passes_has_the_sum(captured: list[Tensor]) -> None:
    weights = [pictures(6, 6, 3, 3, seed=1).requires_grad_() for _ in range(2)]
    for function, weight in zip((torch.conv2d, conv2d), weights, strict=True):
        for seed in range(2):
            y = function(function(pictures(2, 6, 9, 9, seed=seed), weight), weight)
            with awaited():
                y.square().sum().backward()
    torch.testing.assert_close(weights[1].grad, weights[0].grad)
    assert len(captured) == 4


def test_a_weight_that_is_not_trained_is_torchs_own(captured: list[Tensor]) -> None:
    x, weight = pictures(2, 6, 9, 9).requires_grad_(), pictures(8, 6, 3, 3).requires_grad_()
    with torch.no_grad():
        conv2d(x, weight)
    conv2d(x, weight.detach()).sum().backward()
    assert not captured


def test_nothing_is_kept_after_a_backward_pass_nor_after_one_that_broke_off(
    captured: list[Tensor],
) -> None:
    def fails(_: Tensor) -> None:
        assert weight_gradients._kept
        raise KeyError("here")

    for breaks in (False, True):
        first, *weights = (pictures(6, 6, 1, 1, seed=s).requires_grad_() for s in range(5))
        x = conv2d(pictures(2, 6, 9, 9), first)
        if breaks:
            x.register_hook(fails)
        for weight in weights:
            x = conv2d(x, weight)
        if breaks:
            with pytest.raises(KeyError, match="here"), awaited():
                x.sum().backward()
        else:
            with awaited():
                x.sum().backward()
        assert not weight_gradients._kept


def test_the_block_that_has_own_kernels_has_them(captured: list[Tensor]) -> None:
    block = BasicBlock(16, 16)
    torch.compile(block, backend=own_kernels)(pictures(2, 16, 8, 8))
    torch._dynamo.reset()
    assert len(captured) == 2


def test_layers_that_run_as_they_are_written_have_them_too(captured: list[Tensor]) -> None:
    found: list[list[Tensor | None]] = []
    for mode in (nullcontext(), Beside()):
        torch.manual_seed(0)
        block = BasicBlock(16, 16)
        x = pictures(2, 16, 8, 8).requires_grad_()
        with mode:
            y = block(x)
        assert len(captured) == (2 if isinstance(mode, Beside) else 0)
        with awaited():
            y.square().sum().backward()
        found.append([y, x.grad, *(parameter.grad for parameter in block.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
