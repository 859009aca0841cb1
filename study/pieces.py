"""The trials of a search that wait for each other: by `study.halving`, after a screening, or both.

One that waits is still running for Optuna. Of a screening it is told the value, at a step before the trial's epochs.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial

import optuna
from optuna.trial import Trial, TrialState

from study.config import StudyConfig
from study.halving import Course, Halving, course_of
from study.jobs import Job
from study.objectives import Values, broken, costs_in
from study.optuna_study import trials_of
from study.outcomes import SCREENING, curve_of, report, screened_value
from study.trials import Result, Telling, Trials
from trainable.records import EPOCH, EPOCHS, METRICS, VALUE


def open_halving(
    config: StudyConfig, study: optuna.Study, violating: Collection[int] = ()
) -> Halving | None:
    """The halving of a study as far as it is, if that is its pruner, or its trials are screened.

    `violating` are the numbers of trials that break constraints.
    """
    section = config.study
    if section.pruner.name != "halving" and section.screening is None:
        return None
    finalists = 1 if section.replicates is None else section.replicates.finalists
    screened = None if section.screening is None else section.screening.keep
    halving = Halving(section.trials, finalists, screened)
    for trial in trials_of(study):
        with suppress(ValueError):  # of a trial that is not whole: it is drawn, or was given up
            course = _course(config, Job("trial", trial.number, dict(trial.params)))
            halving.follow(trial.number, course, {})
            if (value := screened_value(trial)) is not None:
                halving.screened(trial.number, value)
            halving.follow(trial.number, course, curve_of(trial))
            if trial.state.is_finished():
                is_usable = trial.state == TrialState.COMPLETE and trial.number not in violating
                halving.ends(trial.number, is_usable=is_usable)
    return halving


class TrialsInPieces(Trials):
    """Of one Optuna study, each trained a piece at a time."""

    def __init__(self, study: optuna.Study, config: StudyConfig, halving: Halving) -> None:
        super().__init__(study, config)
        self._config, self._halving = config, halving
        self._screenings: dict[int, float] = {}
        """The best value so far of each that runs, by its trial's number."""

    def next(self, held: Collection[int]) -> Trial:
        return super().next({*held, *self._halving.waiting()})

    def draw(self, trial: Trial) -> Job:
        job = super().draw(trial)
        self._halving.follow(job.number, _course(self._config, job), {})
        return job

    def keep_back(self, trial: Trial, values: Values) -> Telling:
        self._halving.ends(trial.number, is_usable=False)
        return super().keep_back(trial, values)

    def piece_of(self, job: Job) -> Job:
        """Its screening, or its own next epochs."""
        until = self._halving.begins(job.number)
        if self._halving.is_to_be_screened(job.number):
            return replace(job, role="screening")
        return replace(job, until=until)

    def reported(self, trial: Trial, result: Result) -> Telling | None:
        if self._halving.is_to_be_screened(trial.number):
            before = self._screenings.get(trial.number, -math.inf)
            self._screenings[trial.number] = max(before, result[VALUE])
            return None
        self._halving.reported(trial.number, result[EPOCH], result[VALUE])
        return super().reported(trial, result)

    def ended(self, trial: Trial, result: Result | None) -> Telling | None:
        if not result or EPOCH not in result:
            return self.failed(trial)
        told = self.reported(trial, result)  # Tune may tell of its last epoch here only
        if self._halving.is_to_be_screened(trial.number):
            value = self._screenings.pop(trial.number)
            self._halving.screened(trial.number, value)
            self._halving.rests(trial.number)
            return partial(report, trial, SCREENING, value)
        self._halving.rests(trial.number)
        if trial.number in self._halving.waiting():
            return told
        self._halving.ends(trial.number, is_usable=self._is_usable(trial, result))
        return super().ended(trial, result)

    def failed(self, trial: Trial) -> Telling:
        self._halving.ends(trial.number, is_usable=False)
        return super().failed(trial)

    def _is_usable(self, trial: Trial, result: Result) -> bool:
        """Whether a trial that has ended ran to its end and keeps to the constraints."""
        if result[EPOCH] < result[EPOCHS]:
            return False
        values = {"accuracy": self._halving.best(trial.number), **costs_in(dict(result[METRICS]))}
        return not broken(self._config.study.constraints.bounds, values)


def _course(config: StudyConfig, job: Job) -> Course:
    return course_of(job.config(config), waits=config.study.pruner.name == "halving")
