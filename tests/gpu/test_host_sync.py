"""Nothing in an update waits for the CUDA device, whatever is turned on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from tests.gpu.stepping import CAPTURED, Setup
from trainable.engine.step import UPDATES

NoHostSync = Callable[[], AbstractContextManager[None]]
pytestmark = pytest.mark.gpu

FEATURES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "clip by norm": {"clip": 5.0},
    "clip by layer": {"clip": 5.0, "clip_by": "layer"},
    "clip by value": {"clip": 5.0, "clip_by": "value"},
    "gradient noise": {"gradient_noise": 1e-3},
    "accumulate": {"accumulate": 2},
    "observe every": {"observe_every": 1},
    "recompute": {"recompute": True},
    "kd_mse": {"distill": {"method": "kd_mse", "alpha": 0.5}},
}
TOGETHER = {
    "precision": "fp16",
    "gradient_noise": 1e-3,
    "accumulate": 2,
    "observe_every": 1,
    "recompute": True,
}
FEATURES |= {
    f"all, clip by {kind}": {**TOGETHER, "clip": 5.0, "clip_by": kind}
    for kind in ("norm", "layer", "value")
}


def updates_without_waiting(setup: Setup, no_host_sync: NoHostSync) -> None:
    """The health check, which every update has, copies its counters three times."""
    torch.cuda.synchronize()
    with no_host_sync():
        for _ in range(50):
            setup.update()
    assert setup.step.gradients.flush()[UPDATES] > 20


@pytest.mark.parametrize("feature", FEATURES)
def test_nothing_waits_for_the_device_between_flushes(
    feature: str, no_host_sync: NoHostSync
) -> None:
    setup = Setup(**FEATURES[feature])
    setup.update()
    updates_without_waiting(setup, no_host_sync)


@pytest.mark.parametrize(
    "features", [{}, {"precision": "fp16", "accumulate": 2, "clip": 5.0}], ids=["fp32", "fp16"]
)
def test_replays_wait_for_nothing(features: dict[str, Any], no_host_sync: NoHostSync) -> None:
    setup = Setup(**features, observe_every=2, graph=True)
    for _ in range(2 * CAPTURED):
        setup.update()
    updates_without_waiting(setup, no_host_sync)


def test_a_wait_would_be_seen(no_host_sync: NoHostSync) -> None:
    setup = Setup()
    setup.update()
    with no_host_sync(), pytest.raises(RuntimeError, match="synchroniz"):
        setup.step.health.flush()
