"""The trials of one Optuna study: how the next is drawn, and what Optuna is told of each.

A trial's hyperparameters follow from (study seed, trial number, what was known), whatever was drawn before;
a trial ends COMPLETE with its best value, PRUNED or FAIL as what it was; and trials that a dead driver left running
are handed out again, with their values. How far trials broke constraints is told to the samplers that draw by it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from study.config import StudyConfig
from study.drawing import sampler_of
from study.jobs import Job
from study.objectives import Values, costs_in
from study.optuna_study import prune, trials_of
from study.outcomes import curve_of, report, stored, tell_excesses
from study.warm_start import known_trials
from trainable.records import EPOCH, EPOCHS, METRICS, VALUE

Result = Mapping[str, Any]
"""What Tune was reported."""
Telling = Callable[[], None]
"""Tells Optuna something; can be done again where a call was cut short."""


class Trials:
    """Of one Optuna study, each trained in one piece."""

    def __init__(self, study: optuna.Study, config: StudyConfig, of: str = "") -> None:
        """`config` is the study's own, or that of the baseline `of`."""
        self._study, self._space, self._config, self._of = study, config.space, config, of
        self._known: list[FrozenTrial] | None = None
        """Trials of other studies; None before they are read."""

    def next(self, held: Collection[int]) -> Trial:
        """One that nobody holds, left by a driver that died or by a call whose answer was lost; else a new one."""
        known = trials_of(self._study)
        for trial in known:
            if trial.state == TrialState.RUNNING and trial.number not in held:
                return self.taken_up(trial.number)
        self._study.sampler = self._sampler_of(len(known))
        return self._study.ask()

    def taken_up(self, number: int) -> Trial:
        """One that Optuna has: what is not drawn of it yet will be as it would have been, after what is."""
        self._study.sampler = sampler = self._sampler_of(number)
        drawn = trials_of(self._study)[number]
        trial = Trial(self._study, drawn._trial_id)  # pyright: ignore[reportPrivateUsage]
        if not self._is_drawn(drawn):  # else the sampler would write what it would draw now
            for name, distribution in drawn.distributions.items():
                if name not in trial.relative_params and not distribution.single():
                    sampler.sample_independent(self._study, drawn, name, distribution)
        return trial

    def draw(self, trial: Trial) -> Job:
        """What it is to be trained with."""
        self._space(trial)
        return self.job_of(trial)

    def job_of(self, trial: Trial) -> Job:
        """A trial that is drawn, as a job."""
        role = "baseline" if self._of else "trial"
        return Job(role, trial.number, dict(trial.params), of=self._of)

    def keep_back(self, trial: Trial, values: Values) -> Telling:
        """A trial that breaks a constraint by these values is over before it begins."""

        def tell() -> None:
            tell_excesses(trial, self._config.study, values)
            prune(self._study, self.job_of(trial))

        return tell

    def piece_of(self, job: Job) -> Job:
        """What of a trial begins now."""
        return job

    def reported(self, trial: Trial, result: Result) -> Telling | None:
        """An epoch of a trial has ended; None if that is not Optuna's to know."""
        return partial(report, trial, result[EPOCH], result[VALUE])

    def ended(self, trial: Trial, result: Result | None) -> Telling | None:
        """A trial has ended by itself, or was stopped; None if there is nothing to tell of it."""
        return partial(self._tell, trial, result)

    def failed(self, trial: Trial) -> Telling:
        """A trial has failed for good."""
        return partial(self._tell, trial, None)

    def _tell(self, trial: Trial, result: Result | None) -> None:
        if not result or EPOCH not in result:
            self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return
        # Of the epoch at which it is stopped, Tune tells here only.
        report(trial, result[EPOCH], result[VALUE])
        if result[EPOCH] < result[EPOCHS]:
            self._study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            return
        values = {
            "accuracy": max(curve_of(stored(trial)).values()),
            **costs_in(dict(result[METRICS])),
        }
        section = self._config.study
        tell_excesses(trial, section, values)
        told = [values[name] for name in section.objectives]
        self._study.tell(trial, told, skip_if_finished=True)

    def _sampler_of(self, number: int) -> BaseSampler:
        """A fresh sampler for each trial."""
        if self._known is None:
            self._known = known_trials(self._study, self._config)
        return sampler_of(self._config, number, self._known, self._space)

    def _is_drawn(self, trial: FrozenTrial) -> bool:
        try:
            self._space(FixedTrial(trial.params))
        except ValueError:
            return False
        return True
