"""In an update that is captured, weights' gradients are computed beside the rest of the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from tests.gpu.stepping import CUDA, late_weights
from trainable.branches import branch
from trainable.networks.norm_graph import own_kernels
from trainable.networks.weight_gradients import awaited

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("deterministic")]
CONVOLUTIONS = 9


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[torch.cuda.Stream]:
    """Those in which weights' gradients were computed, all of them late."""
    return late_weights(monkeypatch)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    short = nn.Sequential(nn.Conv2d(64, 128, 1, 2, bias=False), nn.BatchNorm2d(128))
    same = [BasicBlock(64, 64) for _ in range(3)]
    blocks = nn.Sequential(*same, BasicBlock(64, 128, 2, short))
    return blocks.to(CUDA).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_gradients_that_come_late_are_those_of_one_stream(
    groups: int, micro_batches: int, half: torch.dtype, streams: list[torch.cuda.Stream]
) -> None:
    """Of one group of blocks, and of two beside each other."""
    x = torch.randn(64, 64, 16, 16, device=CUDA).to(memory_format=torch.channels_last)
    one = nn.ModuleList(network() for _ in range(groups))
    other = copy.deepcopy(one)

    def error(blocks: nn.Module) -> Tensor:
        forward = torch.compile(blocks, backend=own_kernels, dynamic=False)
        with torch.autocast("cuda", half):
            y: Tensor = forward(x)
        return y.float().square().mean()

    def passes(blocks: nn.ModuleList) -> None:
        *others, last = blocks
        for _ in range(micro_batches):
            with branch("another group") as wait:
                errors = [error(group) for group in others]
            errors.append(error(last))
            wait()
            with awaited():
                torch.stack(errors).sum().backward()

    for _ in range(3):
        passes(one)
    own = torch.cuda.Stream()
    own.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(own):
        for _ in range(2):
            passes(other)
    own.synchronize()
    assert not streams
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        capturing = torch.cuda.current_stream()
        passes(other)
    graph.replay()
    torch.cuda.synchronize()
    assert len(streams) == CONVOLUTIONS * micro_batches * groups
    assert len(set(streams)) == groups
    assert capturing not in streams
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=0)
