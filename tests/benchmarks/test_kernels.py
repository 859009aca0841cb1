from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

Script = Callable[[str], Any]


def test_what_runs_at_once_and_when_nothing_runs(script: Script) -> None:
    own = script("kernels")
    kernels = [
        own.Kernel("sm90_fprop", 0.0, 1000.0),
        own.Kernel("triton_red_fused_batch_norm", 500.0, 1000.0),
        own.Kernel("sm90_wgrad", 2000.0, 500.0),
        own.Kernel("elementwise_kernel", 2100.0, 100.0),
    ]
    found = own.shares(reversed(kernels), 4000.0)
    assert found["kinds"]["convolutions, forward"] == 1.0
    assert found["kinds"]["BatchNorm, ReLU, casts, losses"] == 1.0
    assert found["kinds"]["convolutions, gradient of the weights"] == 0.5
    assert found["kinds"][own.OTHER] == pytest.approx(0.1)
    assert found["at_once"] == pytest.approx(0.6)
    assert found["idle"] == pytest.approx(2.0)


def test_a_networks_multiply_adds_are_counted_both_ways(script: Script) -> None:
    own, step = script("kernels"), script("step")
    options = step.parser().parse_args(["--student", "wrn_16_1", "--teacher", "wrn_16_1"])
    options.device = "cpu"
    two, four = (own.flops_of(step.case_of(options, batch)) for batch in (2, 4))
    assert four == 2 * two
    # The teacher's forward is one of four parts, but that the first layer's input needs no gradient.
    assert 3.5 < two / _forward(own, step, options) < 4


def _forward(own: Any, step: Any, options: Any) -> int:
    case, counted = step.case_of(options, 2), FlopCounterMode(display=False)
    with counted, torch.no_grad():
        case.teacher(torch.randn(2, 3, 32, 32))
    return counted.get_total_flops()
