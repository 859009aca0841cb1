"""Which trials are stopped early."""

from __future__ import annotations

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from study.config import StudyConfig
from trainable.records import EPOCH, VALUE


def build_scheduler(config: StudyConfig) -> TrialScheduler:
    """Tune's scheduler for the config's pruner."""
    pruner, epochs = config.study.pruner, config.train.epochs
    if pruner.name == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=EPOCH,
        metric=VALUE,
        mode="max",
        # At `max_t` ASHA stops a trial itself, before it has ended: never reach it.
        max_t=epochs + 1,
        grace_period=min(pruner.grace_epochs, epochs),
        reduction_factor=pruner.reduction_factor,
    )
