"""Learning rates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from trainable.config import TrialConfig
from trainable.engine.schedule import learning_rates, onecycle, triangle
from trainable.plan import stages

MakeConfig = Callable[..., TrialConfig]


@pytest.mark.parametrize("total", [7, 40, 391])
@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5])
def test_onecycle_is_torchs(total: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = OneCycleLR(optimizer, 0.2, total_steps=total, pct_start=warmup, cycle_momentum=False)
    for index in range(total):
        assert onecycle(index, total, 0.2, warmup) == pytest.approx(
            theirs.get_last_lr()[0], rel=1e-9
        )
        optimizer.step()
        if index < total - 1:
            theirs.step()


def test_triangle_rises_to_its_peak_and_falls_to_its_foot() -> None:
    assert triangle(0.0, 0.5, 0.3) == 0
    assert triangle(0.3, 0.5, 0.3) == pytest.approx(0.5)
    assert triangle(0.65, 0.5, 0.3) == pytest.approx(0.25)
    assert triangle(1.0, 0.5, 0.3) == 0


def test_each_stage_has_a_triangle_with_half_the_peak(make_config: MakeConfig) -> None:
    config = make_config(
        distill={"method": "stablekd", "decomposition": "5/2"},
        optim={"lr": 0.4},
        train={"epochs": 10},
    )
    plan = stages(config, 5)
    assert [stage.epochs for stage in plan] == [3, 3, 4]
    rates = learning_rates(config, plan, 20)
    parts = [rates[:60], rates[60:120], rates[120:]]
    assert [len(part) for part in parts] == [60, 60, 80]
    for part, peak in zip(parts, [0.4, 0.2, 0.1], strict=True):
        top = part.index(max(part))
        assert max(part) == pytest.approx(peak, rel=0.05)
        assert 0 < part[0] < 0.06 * peak
        assert 0 < part[-1] < 0.06 * peak
        assert top == pytest.approx(0.3 * len(part), abs=1)
        assert list(part[: top + 1]) == sorted(part[: top + 1])
        assert list(part[top:]) == sorted(part[top:], reverse=True)


def test_methods_without_stages_take_onecycle(make_config: MakeConfig) -> None:
    config = make_config(optim={"lr": 0.4}, train={"epochs": 3})
    rates = learning_rates(config, stages(config, 5), 20)
    assert rates == tuple(onecycle(i, 60, 0.4, 0.3) for i in range(60))


def test_the_schedule_can_be_chosen(make_config: MakeConfig) -> None:
    config = make_config(optim={"lr": 0.4, "schedule": "triangle"}, train={"epochs": 3})
    rates = learning_rates(config, stages(config, 5), 20)
    assert max(rates) == pytest.approx(0.4, rel=0.05)
    assert rates[0] == pytest.approx(triangle(1 / 61, 0.4, 0.3))
