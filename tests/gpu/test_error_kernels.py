"""Own CUDA kernels of the errors between features, launched one by one, in a CUDA graph, and on two streams at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.gpu.stepping import CUDA
from trainable.compiled import OWN, Compiler
from trainable.distill import attention_kernels, error_kernels
from trainable.distill.at import attention_error
from trainable.distill.terms import feature_error, squared_error
from trainable.networks.norm_kernels import arrivals

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("deterministic")]
SHAPES = [(128, 64, 32, 32), (3, 24, 5, 7), (512, 512, 4, 4), (128, 100)]


def maps(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(CUDA, dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


ATTENDED = [(128, 64, 64, 32), (3, 24, 40, 5), (64, 512, 256, 4)]
"""Samples, both networks' channels, height and width."""


def own(student: Tensor, teacher: Tensor) -> Tensor:
    with Compiler(len(student), formulas=OWN).at_work(len(student)):
        return feature_error(student, teacher)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_error_and_gradient_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    teacher, found = maps(shape, 1, dtype), []
    assert error_kernels.takes(teacher, teacher)
    for function in (own, squared_error):
        student = maps(shape, 0, dtype).requires_grad_()
        error = function(student, teacher)
        (error * 1024).backward()
        found.append((error.detach(), student.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2 * eps, atol=1e-7)
    assert not arrivals(CUDA).any()


def test_a_graph_on_two_streams_repeats_its_bits() -> None:
    pairs = [tuple(maps(shape, seed, torch.float16) for seed in (0, 1)) for shape in SHAPES[:2]]
    expected = [float(own(*pair)) for pair in pairs]
    streams = [torch.cuda.Stream() for _ in pairs]
    torch.cuda.synchronize()
    graph, found = torch.cuda.CUDAGraph(), list[Tensor]()
    with torch.cuda.graph(graph):
        main = torch.cuda.current_stream()
        for stream, pair in zip(streams, pairs, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                found.append(own(*pair))
        for stream in streams:
            main.wait_stream(stream)
    for _ in range(20):
        graph.replay()
        torch.cuda.synchronize()
        assert [float(error) for error in found] == expected


@pytest.mark.parametrize("shape", ATTENDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_is_compared_as_by_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    samples, mine, theirs, size = shape
    teacher = maps((samples, theirs, size, size), 1, dtype).relu()
    found: list[tuple[Tensor, Tensor | None]] = []
    for formulas in (OWN, None):
        student = maps((samples, mine, size, size), 0, dtype).relu().requires_grad_()
        assert attention_kernels.takes(student, teacher)
        with Compiler(samples, formulas=formulas).at_work(samples):
            error = attention_error(student, teacher)
        (error * 1024).backward()
        found.append((error.detach(), student.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    gradient = found[1][1]
    assert gradient is not None
    eps, smallest = torch.finfo(dtype).eps, torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    rounding = 1e-5 * float(gradient.abs().amax()) + smallest
    torch.testing.assert_close(found[0][1], gradient, rtol=2 * eps, atol=rounding)
