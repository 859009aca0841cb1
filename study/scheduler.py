"""Which trials are stopped early."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from study.config import StudyConfig
from trainable.records import EPOCH, VALUE

Curves = Mapping[int, Mapping[int, float]]
"""Trial number → epoch → value."""


def build_scheduler(config: StudyConfig, ended: Curves) -> TrialScheduler:
    """Tune's scheduler for the config's pruner, which knows the trials that have `ended` before."""
    pruner, epochs = config.study.pruner, config.train.epochs
    if pruner.name == "none":
        return FIFOScheduler()
    asha = ASHAScheduler(
        time_attr=EPOCH,
        metric=VALUE,
        mode="max",
        # At `max_t` ASHA stops a trial itself, before it has ended: never reach it.
        max_t=epochs + 1,
        grace_period=min(pruner.grace_epochs, epochs),
        reduction_factor=pruner.reduction_factor,
    )
    _remember(asha, ended)
    return asha


def _remember(asha: ASHAScheduler, ended: Curves) -> None:
    """Fill the rungs as the trials did: Tune forgets them with the driver."""
    (bracket,) = asha._brackets  # pyright: ignore[reportPrivateUsage]
    for milestone, recorded in bracket._rungs:  # pyright: ignore[reportPrivateUsage]
        epoch = math.ceil(milestone)
        for number, curve in ended.items():
            if epoch in curve:
                recorded[f"ended {number}"] = curve[epoch]
