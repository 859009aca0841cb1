"""Learning rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from trainable.config import TrialConfig
from trainable.engine.schedule import learning_rates, onecycle, triangle
from trainable.plan import stages

MakeConfig = Callable[..., TrialConfig]
PER_EPOCH = 20
STABLEKD = {"method": "stablekd", "decomposition": "5/2"}


def torchs(build: Callable[[Optimizer], LRScheduler], updates: int, peak: float) -> list[float]:
    """The learning rate of each update by a scheduler of torch's that is stepped after each."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = build(optimizer)
    rates: list[float] = []
    for _ in range(updates):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def rates_of(config: TrialConfig) -> tuple[float, ...]:
    return learning_rates(config, stages(config, 5), PER_EPOCH)


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


@pytest.mark.parametrize(("decay", "mode"), [(0.5, "triangular2"), (1.0, "triangular")])
@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5])
def test_triangles_of_equal_stages_are_torchs_cycles(
    warmup: float, decay: float, mode: Any, make_config: MakeConfig
) -> None:
    """Whose updates at rate 0, one a cycle, are left out."""
    config = make_config(
        distill=STABLEKD,
        optim={"lr": 0.4, "warmup_fraction": warmup, "peak_decay": decay},
        train={"epochs": 6},
    )
    cycle = 2 * PER_EPOCH + 1
    up = warmup * cycle

    def build(optimizer: Optimizer) -> LRScheduler:
        down = cycle - up
        return CyclicLR(optimizer, 0.0, 0.4, up, down, mode=mode, cycle_momentum=False)

    theirs = torchs(build, 3 * cycle, 0.4)
    feet = theirs[::cycle]
    assert feet == pytest.approx([0.0] * 3, abs=1e-12)
    expected = [rate for index, rate in enumerate(theirs) if index % cycle]
    assert rates_of(config) == pytest.approx(expected, rel=1e-9)


def test_a_triangle_spans_the_epochs_of_its_stage(make_config: MakeConfig) -> None:
    distill = {**STABLEKD, "stage_epochs": (1, 4, 2)}
    rates = rates_of(make_config(distill=distill, optim={"lr": 0.4}, train={"epochs": 7}))
    start = 0
    for epochs, peak in ((1, 0.4), (4, 0.2), (2, 0.1)):
        updates = epochs * PER_EPOCH
        expected = [triangle((i + 1) / (updates + 1), peak, 0.3) for i in range(updates)]
        assert list(rates[start : start + updates]) == expected
        start += updates
    assert start == len(rates)


@pytest.mark.parametrize(("share", "warmup"), [(None, 4), (0.0, 0), (0.2, 16), (0.01, 0)])
@pytest.mark.parametrize("distill", [{}, STABLEKD], ids=["kd", "stablekd"])
def test_cosine_is_torchs_after_a_linear_warmup(
    share: float | None, warmup: int, distill: dict[str, Any], make_config: MakeConfig
) -> None:
    """Over all stages; 4 of 80 updates are the share that is taken where none is given."""
    optim = {"lr": 0.2, "schedule": "cosine", "warmup_fraction": share}
    config = make_config(distill=distill, optim=optim, train={"epochs": 4})

    def build(optimizer: Optimizer) -> LRScheduler:
        after = CosineAnnealingLR(optimizer, T_max=80 - warmup)
        if not warmup:
            return after
        rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        return SequentialLR(optimizer, [rise, after], milestones=[warmup])

    rates = rates_of(config)
    assert rates == pytest.approx(torchs(build, 80, 0.2), rel=1e-9)
    assert max(rates) == rates[warmup] == 0.2
    assert 0 < rates[-1] < 1e-3


@pytest.mark.parametrize("distill", [{}, STABLEKD], ids=["kd", "stablekd"])
def test_multistep_is_torchs_epoch_by_epoch(
    distill: dict[str, Any], make_config: MakeConfig
) -> None:
    optim = {"lr": 0.2, "schedule": "multistep", "milestones": [1, 4], "milestone_decay": 0.25}
    config = make_config(distill=distill, optim=optim, train={"epochs": 6})
    epochs = torchs(lambda optimizer: MultiStepLR(optimizer, [1, 4], gamma=0.25), 6, 0.2)
    assert rates_of(config) == pytest.approx([rate for rate in epochs for _ in range(PER_EPOCH)])
    assert epochs == pytest.approx([0.2, 0.05, 0.05, 0.05, 0.0125, 0.0125])


def test_multistep_can_be_warmed_up_past_a_milestone(make_config: MakeConfig) -> None:
    optim = {"lr": 0.2, "schedule": "multistep", "milestones": [1, 3], "warmup_fraction": 0.5}
    rates = rates_of(make_config(optim=optim, train={"epochs": 4}))
    assert rates[0] == pytest.approx(0.2 / 41)
    assert rates[19] == pytest.approx(0.2 * 20 / 41)
    assert rates[20] == pytest.approx(0.02 * 21 / 41)
    assert rates[39] == pytest.approx(0.02 * 40 / 41)
    assert rates[40:60] == pytest.approx([0.02] * 20)
    assert rates[60:] == pytest.approx([0.002] * 20)


@pytest.mark.parametrize("schedule", ["triangle", "onecycle"])
def test_three_tenths_of_a_cycle_warm_up_unless_told(
    schedule: str, make_config: MakeConfig
) -> None:
    def rates(share: float | None) -> tuple[float, ...]:
        optim = {"schedule": schedule, "warmup_fraction": share}
        return rates_of(make_config(optim=optim, train={"epochs": 3}))

    assert rates(None) == rates(0.3) != rates(0.2)


def test_the_schedule_can_be_chosen(make_config: MakeConfig) -> None:
    config = make_config(optim={"lr": 0.4, "schedule": "triangle"}, train={"epochs": 3})
    rates = learning_rates(config, stages(config, 5), 20)
    assert max(rates) == pytest.approx(0.4, rel=0.05)
    assert rates[0] == pytest.approx(triangle(1 / 61, 0.4, 0.3))
