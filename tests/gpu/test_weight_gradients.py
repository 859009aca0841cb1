"""In an update that is captured, weights' gradients are computed beside the rest of the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from tests.gpu.stepping import CUDA
from trainable.networks.norm_graph import own_kernels
from trainable.networks.weight_gradients import awaited

pytestmark = pytest.mark.gpu


def network() -> nn.Sequential:
    torch.manual_seed(0)
    short = nn.Sequential(nn.Conv2d(64, 128, 1, 2, bias=False), nn.BatchNorm2d(128))
    blocks = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 128, 2, short))
    return blocks.to(CUDA).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_gradients_of_a_captured_pass_are_those_without(
    micro_batches: int, half: torch.dtype
) -> None:
    x = torch.randn(64, 64, 16, 16, device=CUDA).to(memory_format=torch.channels_last)
    one = network()
    other = copy.deepcopy(one)

    def passes(blocks: nn.Sequential) -> None:
        forward = torch.compile(blocks, backend=own_kernels, dynamic=False)
        for _ in range(micro_batches):
            with torch.autocast("cuda", half):
                y: Tensor = forward(x)
            with awaited():
                y.float().square().mean().backward()

    for _ in range(3):
        passes(one)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            passes(other)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        passes(other)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=0)
    torch._dynamo.reset()
