"""The learning rate of every update, as a pure function of its number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainable.config import TrialConfig
from trainable.plan import Stage, peak_learning_rate, schedule_of, warmup_share

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


def cosine(index: int, total: int, peak: float, warmup: int) -> float:
    """`peak`·(i + 1)/(w + 1) in the first w = `warmup` updates, then `peak`·(1 + cos(π·(i − w)/(t − w)))/2.

    i = `index` is the update from 0 and t = `total` > w the number of updates: the rate starts one update
    after 0, is `peak` at i = w and would be 0 at i = t (Loshchilov and Hutter 2017, eq. 5, without restarts).
    """
    if index < warmup:
        return peak * _warming(index, warmup)
    return _cosine(peak, 0.0, (index - warmup) / (total - warmup))


def multistep(
    index: int, milestones: Sequence[int], peak: float, decay: float, warmup: int
) -> float:
    """`peak`·`decay`^m after m of the `milestones`, times (i + 1)/(w + 1) in the first w = `warmup` updates.

    i = `index` is the update from 0, and a milestone the number of updates before it.
    """
    passed = sum(milestone <= index for milestone in milestones)
    return peak * decay**passed * _warming(index, warmup)


def learning_rates(
    config: TrialConfig, stages: Sequence[Stage], updates_per_epoch: int
) -> tuple[float, ...]:
    """The learning rate of each update of the trial, taken or skipped.

    `triangle` gives every stage one cycle, which starts and ends one step from 0; the others span all stages.
    The warm-up of `cosine` and `multistep` takes w = ⌊`warmup_fraction`·t⌋ of t updates.
    """
    optim, total = config.optim, updates_per_epoch * config.train.epochs
    peak_lr = peak_learning_rate(config)
    schedule = schedule_of(config.distill, optim)
    share = warmup_share(config)
    warmup = int(share * total)
    match schedule:
        case "triangle":
            spans = [(stage.peak_lr, stage.epochs * updates_per_epoch) for stage in stages]
            return tuple(
                triangle((i + 1) / (updates + 1), peak, share)
                for peak, updates in spans
                for i in range(updates)
            )
        case "onecycle":
            return tuple(onecycle(i, total, peak_lr, share) for i in range(total))
        case "cosine":
            return tuple(cosine(i, total, peak_lr, warmup) for i in range(total))
        case "multistep":
            steps = [epoch * updates_per_epoch for epoch in optim.milestones or ()]
            return tuple(
                multistep(i, steps, peak_lr, optim.milestone_decay, warmup) for i in range(total)
            )


def _warming(index: int, warmup: int) -> float:
    return min(1.0, (index + 1) / (warmup + 1))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2
