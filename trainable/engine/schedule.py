"""The learning rate of every update, as a pure function of its number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainable.config import TrialConfig
from trainable.plan import Stage, schedule_of

_ONECYCLE_START = 1 / 25
_ONECYCLE_END = 1 / 25 / 1e4


def triangle(position: float, peak: float, warmup: float) -> float:
    """Linear from 0 to `peak` over the first `warmup` of the cycle and back; `position` in [0, 1]."""
    rising, falling = position / warmup, (1 - position) / (1 - warmup)
    return peak * min(rising, falling)


def onecycle(index: int, total: int, peak: float, warmup: float) -> float:
    """Smith and Topin's OneCycle with cosine annealing, as torch's OneCycleLR without momentum cycling.

    `index` is the update from 0, `total` the number of updates.
    """
    top = warmup * total - 1
    if index <= top:
        return _cosine(peak * _ONECYCLE_START, peak, index / top if top else 1.0)
    return _cosine(peak, peak * _ONECYCLE_END, (index - top) / max(1.0, total - 1 - top))


def learning_rates(
    config: TrialConfig, stages: Sequence[Stage], updates_per_epoch: int
) -> tuple[float, ...]:
    """The learning rate of each update of the trial.

    `triangle` gives every stage one cycle, which starts and ends one step from 0; `onecycle` spans all stages.
    """
    warmup = config.optim.warmup_fraction
    if schedule_of(config.distill, config.optim) == "onecycle":
        total = updates_per_epoch * config.train.epochs
        return tuple(onecycle(i, total, config.optim.lr, warmup) for i in range(total))
    rates: list[float] = []
    for stage in stages:
        updates = stage.epochs * updates_per_epoch
        rates += [triangle((i + 1) / (updates + 1), stage.peak_lr, warmup) for i in range(updates)]
    return tuple(rates)


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2
