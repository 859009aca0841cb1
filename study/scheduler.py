"""Which trials are stopped early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from study.budget import longest
from study.config import StudyConfig
from study.jobs import Job
from trainable.records import EPOCH, VALUE

Curves = Mapping[int, Mapping[int, float]]
"""Trial number → epoch → value."""


def build_scheduler(config: StudyConfig, ended: Curves) -> TrialScheduler:
    """Tune's scheduler for the config's pruner, which knows the trials that have `ended` before."""
    pruner, epochs = config.study.pruner, longest(config)
    if pruner.name != "asha":  # under `study.halving` a trial ends its piece itself
        return FIFOScheduler()
    asha = _TrialsOnly(
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


class _TrialsOnly(ASHAScheduler):
    """ASHA that leaves the study's other jobs alone: a teacher is no rival of a student.

    A trial that begins again is the same one, though Tune gives it another id.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._ids: dict[int, str] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if _is_searched(trial):
            super().on_trial_add(tune_controller, trial)
            number = Job.from_dict(trial.config["job"]).number
            for _, recorded in _rungs(self):
                if (before := self._ids.get(number)) in recorded:
                    recorded[trial.trial_id] = recorded.pop(before)
            self._ids[number] = trial.trial_id

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not _is_searched(trial):
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if _is_searched(trial):
            super().on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        if _is_searched(trial):
            super().on_trial_remove(tune_controller, trial)


def _is_searched(trial: Trial) -> bool:
    job = Job.from_dict(trial.config["job"])
    return job.role == "trial" and job.split is None


def _remember(asha: ASHAScheduler, ended: Curves) -> None:
    """Fill the rungs as the trials did: Tune forgets them with the driver."""
    for milestone, recorded in _rungs(asha):
        epoch = math.ceil(milestone)
        for number, curve in ended.items():
            if epoch in curve:
                recorded[f"ended {number}"] = curve[epoch]


def _rungs(asha: ASHAScheduler) -> list[tuple[float, dict[str, float]]]:
    """Epoch → what trials had reached there, by Tune's id."""
    (bracket,) = asha._brackets  # pyright: ignore[reportPrivateUsage]
    return bracket._rungs  # pyright: ignore
