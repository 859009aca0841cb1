"""SyncBatchNorm's exchanges from GPU to GPU, thousands of them, of ranks that come to them at different times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.gpu.two_ranks import on_two_ranks
from trainable import ranks
from trainable.networks.sync_batchnorm import SyncBatchNorm, take_own_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.timeout(200),
]
CHANNELS, TIMES, PICTURES = (8, 24, 64, 256), 1000, 3


def pictures(channels: int, number: int, device: torch.device) -> Tensor:
    """Of both ranks."""
    generator = torch.Generator(device).manual_seed(number)
    x = torch.randn(2 * PICTURES, channels, 4, 4, generator=generator, device=device)
    return x.contiguous(memory_format=torch.channels_last)


def own_share(x: Tensor) -> Tensor:
    return x.chunk(2)[ranks.rank()]


def exchanges(device: torch.device, folder: Path) -> dict[str, Any]:
    del folder
    found: dict[str, Any] = {}
    late = torch.Generator().manual_seed(ranks.rank())
    for channels in CHANNELS:
        layer = SyncBatchNorm(channels).to(device)
        take_own_kernels(layer, device)
        assert layer.exchanges is not None
        assert layer.exchanges.forward is not None, "there is no way from one GPU to the other"
        bad = torch.zeros((), device=device)
        for number in range(TIMES):
            x = own_share(pictures(channels, number, device)).requires_grad_()
            torch.cuda._sleep(int(torch.randint(0, 30_000, (), generator=late)))
            y = layer(x)
            torch.cuda._sleep(int(torch.randint(0, 30_000, (), generator=late)))
            y.backward(own_share(pictures(channels, number + TIMES, device)))
            assert x.grad is not None
            bad += (~x.grad.isfinite()).sum()  # it has the sums of both
            bad += sum((~p.grad.isfinite()).sum() for p in layer.parameters())
        found[str(channels)] = {
            "bad": int(bad),
            "buffers": {name: buffer.cpu() for name, buffer in layer.named_buffers()},
        }
    return found


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return on_two_ranks(exchanges, tmp_path_factory.mktemp("exchanges"))


@pytest.mark.parametrize("channels", CHANNELS)
def test_every_exchange_ends_with_the_numbers_of_both(channels: int, exchanged: list[Any]) -> None:
    device = torch.device("cuda", 0)
    layer = nn.BatchNorm2d(channels).to(device)
    for number in range(TIMES):
        layer(pictures(channels, number, device))
    one, two = (results[str(channels)] for results in exchanged)
    assert (one["bad"], two["bad"]) == (0, 0)
    for name, expected in layer.named_buffers():
        assert torch.equal(one["buffers"][name], two["buffers"][name]), name
        torch.testing.assert_close(one["buffers"][name], expected.cpu(), rtol=1e-4, atol=1e-5)
