"""Sums of gradients over two ranks (NCCL) where autograd leaves some in memory that something else holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.two_ranks import on_two_ranks
from tests.trainable.shared_gradients import Halves, Offset, Scaled
from trainable import ranks
from trainable.engine import exchange
from trainable.engine.exchange import Exchange

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.timeout(200),
]
KINDS = {kind.__name__: kind for kind in (Offset, Halves, Scaled)}
SPLIT_BYTES = 64
"""An offset is sent before its layer has its gradient."""


def sums(device: torch.device, folder: Path) -> dict[str, Any]:
    """Of each network: what both ranks' gradients come to, and what is found by launches and by a replayed graph."""
    del folder
    exchange._LAST_BYTES = SPLIT_BYTES
    found: dict[str, Any] = {}
    for name, kind in KINDS.items():
        torch.manual_seed(0)
        network = kind().to(device)
        parameters = list(network.parameters())
        x = torch.randn(1, 3, generator=torch.Generator().manual_seed(ranks.rank())).to(device)
        own = torch.autograd.grad(network(x).sin().sum(), parameters)
        made = Exchange(parameters)

        def update(network: Any = network, x: Tensor = x, made: Exchange = made) -> None:
            for parameter in network.parameters():
                parameter.grad = None
            with made.at_work():
                network(x).sin().sum().backward()
            made.finish()

        for _ in range(2):
            update()
        launched = [p.grad.clone() for p in parameters if p.grad is not None]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            update()
        for _ in range(2):
            graph.replay()
        replayed = [p.grad.clone() for p in parameters if p.grad is not None]
        forms = {
            "expected": [ranks.sum_over_ranks(gradient.clone()) for gradient in own],
            "launched": launched,
            "replayed": replayed,
        }
        found[name] = {form: [t.cpu() for t in tensors] for form, tensors in forms.items()}
        graph.reset()
    return found


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return on_two_ranks(sums, tmp_path_factory.mktemp("sums"))


@pytest.mark.parametrize("form", ["launched", "replayed"])
@pytest.mark.parametrize("name", KINDS)
def test_each_gradient_is_summed_once(name: str, form: str, on_ranks: list[Any]) -> None:
    for results in on_ranks:
        expected = results[name]["expected"]
        assert len(results[name][form]) == len(expected)
        for found, value in zip(results[name][form], expected, strict=True):
            torch.testing.assert_close(found, value)
