"""What does not depend on one another in a captured update runs beside each other, and is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from trainable.branches import branch

pytestmark = pytest.mark.gpu
CYCLES = 100_000_000
"""Of a kernel that does nothing for some 50 ms."""


def captured(function: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def seconds(graph: torch.cuda.CUDAGraph) -> float:
    graph.replay()
    torch.cuda.synchronize()
    started = time.perf_counter()
    graph.replay()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def sleep() -> None:
    torch.cuda._sleep(CYCLES)


def test_a_branch_runs_beside_what_comes_after_it() -> None:
    def in_line() -> None:
        sleep()
        sleep()

    def in_a_branch() -> None:
        with branch("one") as wait:
            sleep()
        sleep()
        wait()

    assert seconds(captured(in_a_branch)) < 0.7 * seconds(captured(in_line))


def test_branches_of_one_name_and_what_waits_come_one_after_the_other() -> None:
    number = torch.zeros((), device="cuda")
    seen = torch.zeros((), device="cuda")

    def update() -> None:
        number.zero_()
        for _ in range(2):
            with branch("one") as wait:
                sleep()
                number.mul_(10).add_(1)
        wait()
        seen.copy_(number)

    graph = captured(update)
    for _ in range(3):
        graph.replay()
    assert seen.item() == 11


def test_gradients_that_branches_made_are_those_of_one_stream() -> None:
    weights = [torch.full((3,), w, device="cuda", requires_grad=True) for w in (2.0, 3.0)]
    x = torch.tensor([1.0, 2.0, 3.0], device="cuda")
    got = [torch.zeros(3, device="cuda") for _ in weights]

    def update() -> None:
        with branch("one") as wait:
            sleep()
            first = (weights[0] * x).square().sum()
        second = (weights[1] * x).square().sum()
        wait()
        (first + second).backward()
        for mine, weight in zip(got, weights, strict=True):
            assert weight.grad is not None
            mine.copy_(weight.grad)
            weight.grad = None

    update()  # what cuBLAS and autograd prepare
    graph = captured(update)
    for mine in got:
        mine.zero_()
    graph.replay()
    for mine, w in zip(got, (2.0, 3.0), strict=True):
        torch.testing.assert_close(mine, 2 * w * x.square())


def test_nothing_is_beside_anything_outside_a_capture() -> None:
    stream = torch.cuda.current_stream()
    with branch("one") as wait:
        assert torch.cuda.current_stream() == stream
    wait()
