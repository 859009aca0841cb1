"""OptunaSearch that tells Optuna the truth, and that repeats itself.

It takes a study's steps one after the other, and draws where one is a trial. Three things differ from
Ray's class: a trial's hyperparameters follow from (study seed, trial number, what was known), whatever was
drawn before; a trial ends COMPLETE with its best value, PRUNED or FAIL as what it was; and trials that a
dead driver left running are handed out again, with their values. While Optuna's storage is away, what it is
to be told waits here, and no trial is drawn: it follows from all that was known.

A trial that breaks a constraint before it trains is PRUNED without having begun. How far trials broke constraints
is told to the samplers that draw by it. One that waits for its turn under `study.halving` is still running for Optuna.
"""

from __future__ import annotations

import math
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from study.baselines import baseline_search
from study.config import StudyConfig, StudySection
from study.drawing import sampler_of
from study.halving import Halving, course_of
from study.jobs import Job
from study.objectives import Values, costs_in
from study.optuna_storage import AwayError, OptunaError
from study.optuna_study import NO_BASELINES, Beside, prune, trials_of
from study.outcomes import SCREENING, curve_of, report, stored, tell_excesses
from study.schema import BaselineName
from study.warm_start import known_trials
from trainable.records import EPOCH, EPOCHS, METRICS, VALUE


@dataclass(frozen=True)
class Draw:
    """The next trial of a baseline's own search."""

    of: BaselineName


@dataclass(frozen=True)
class GoOn:
    """A trial of the study's search that waits goes on."""

    number: int


Step = Job | Draw | GoOn | Literal["trial", "wait"]
"""A job, the next trial of a baseline's search or of the study's, or one of the latter that waits; or nothing yet:
something has to end first."""
KnownBefore = Callable[[Job], Values]
"""Values of a trial that break a constraint whatever it would learn, so that it is not to be trained; else none."""

_LOOK_S = 0.25
"""Between two looks whether a storage is back."""

_KEPT_BACK = object()
"""Instead of a suggestion: the step's trial was over before it began."""


class _Search:
    """One Optuna study, and what is drawn for it."""

    def __init__(self, study: optuna.Study, config: StudyConfig) -> None:
        self.study, self.space, self._config = study, config.space, config
        self.section = config.study
        self._known: list[FrozenTrial] | None = None
        """Trials of other studies; None before they are read."""

    def sampler_of(self, number: int) -> BaseSampler:
        """A fresh sampler for each trial."""
        if self._known is None:
            self._known = known_trials(self.study, self._config)
        conditional = bool(self.space.conditions)
        return sampler_of(self._config, number, self._known, conditional=conditional)

    def taken_up(self, drawn: FrozenTrial) -> Trial:
        """What is not drawn yet of a trial will be drawn as it would have been: after what is."""
        trial, sampler = Trial(self.study, _id_of(drawn)), self.study.sampler
        if not self._is_drawn(drawn):  # else the sampler would write what it would draw now
            for name, distribution in drawn.distributions.items():
                if name not in trial.relative_params and not distribution.single():
                    sampler.sample_independent(self.study, drawn, name, distribution)
        return trial

    def _is_drawn(self, trial: FrozenTrial) -> bool:
        try:
            self.space(FixedTrial(trial.params))
        except ValueError:
            return False
        return True


class StudySearch(OptunaSearch):
    """Ray's searcher over one Optuna study, which takes the steps of a study one after the other."""

    def __init__(
        self,
        config: StudyConfig,
        study: optuna.Study | None,
        steps: Iterator[Step],
        beside: Beside = NO_BASELINES,
        known_before: KnownBefore = lambda _: {},
        halving: Halving | None = None,
    ) -> None:
        """None is the study of `steps` without a trial; `halving` is of its trials, if they wait for each other."""
        self._steps, self._known_before = steps, known_before
        self._config, self._halving = config, halving
        self._searches: dict[str, _Search] = {
            name: _Search(baseline, baseline_search(config, name))
            for name, baseline in beside.items()
        }
        """By `Job.of`: the study's own has no name."""
        if study is not None:
            self._searches[""] = _Search(study, config)
        self._step: Step | str | None = None
        self._trials: dict[str, Trial] = {}
        self._untold: deque[Callable[[], None]] = deque()
        """In their order; each can be done again where a call was cut short."""
        self._failed: dict[tuple[str, int], Trial] = {}
        """By the names of their Optuna studies, and number."""
        self._again: list[Job] = []
        self._screenings: dict[int, float] = {}
        """The best value so far of each that runs, by its trial's number."""
        self._failure: Exception | None = None
        # No space is given: Ray's class then opens no study of its own.
        super().__init__(metric=VALUE, mode="max")

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Tune asks to be given the space; it is known."""
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles it for a restore that is not used here."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps(self))

    def suggest(self, trial_id: str) -> Any:
        """The job of the next step, or one that begins again; None while there is none, Tune's word for the end after
        the last.

        OptunaError where Optuna could not be told of a trial: it is still running there, and is handed out again by
        the next driver.
        """
        self._tell_what_waits()
        self._must_not_have_failed()
        if self._again:
            job = self._again.pop(0)
            if (trial := self._failed_of(job)) is not None:
                self._trials[trial_id] = trial
            return {"job": job.to_dict()}
        if self._untold:
            return None
        suggestion = _KEPT_BACK
        while suggestion is _KEPT_BACK:
            self._step = self._step or next(self._steps, Searcher.FINISHED)
            try:
                suggestion = self._taken(self._step, trial_id)
            except AwayError:
                return None
            self._step = None
        return suggestion

    def settle(self) -> None:
        """Wait until Optuna has been told everything; OptunaError if it cannot be."""
        self._tell_what_waits()
        while self._untold:
            self._must_not_have_failed()
            time.sleep(_LOOK_S)
            self._tell_what_waits()

    def _must_not_have_failed(self) -> None:
        if self._failure is None:
            return
        if isinstance(self._failure, OptunaError):
            raise self._failure
        reason = f"{type(self._failure).__name__}: {self._failure}".partition("\n")[0]
        text = f"Optuna's storage failed ({reason}); the same command goes on"
        raise OptunaError(text) from self._failure

    def _taken(self, step: Step | str, trial_id: str) -> Any:
        match step:
            case Job() as job:
                return {"job": job.to_dict()}
            case "trial":
                return self._handed_out(self._draw(trial_id, ""))
            case Draw(of=name):
                return self._handed_out(self._draw(trial_id, name))
            case GoOn(number=number):
                trial = self._taken_up(self._searches[""], number)
                self._trials[trial_id] = trial
                return self._handed_out(self._piece_of(_job_of(trial)))
            case "wait":
                return None
            case finished:
                return finished

    def _handed_out(self, job: Job | None) -> Any:
        return _KEPT_BACK if job is None else {"job": job.to_dict()}

    def _draw(self, trial_id: str, of: str) -> Job | None:
        """A trial: an unfinished one if there is any, else a new one; None if it is over before it begins."""
        search = self._searches[of]
        trial = self._next(search)
        search.space(trial)
        job = _job_of(trial, of)
        halving = None if of else self._halving
        if halving is not None:
            waits = search.section.pruner.name == "halving"
            halving.follow(job.number, course_of(job.config(self._config), waits=waits), {})
        if values := self._known_before(job):
            tell_excesses(trial, search.section, values)
            prune(search.study, job)
            if halving is not None:
                halving.ends(job.number)
            return None
        self._trials[trial_id] = trial
        return job if halving is None else self._piece_of(job)

    def _piece_of(self, job: Job) -> Job:
        """What of a trial is trained next: its screening, or its own next epochs."""
        assert self._halving is not None
        until = self._halving.begins(job.number)
        if self._halving.is_to_be_screened(job.number):
            return replace(job, role="screening")
        return replace(job, until=until)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Let Optuna see the curve."""
        if trial_id in self._trials:
            trial = self._trials[trial_id]
            halving = self._halving_of(trial)
            if halving is not None and halving.is_to_be_screened(trial.number):
                self._see_screening(trial, result)
                return
            if halving is not None:
                halving.reported(trial.number, result[EPOCH], result[VALUE])
            self._untold.append(partial(_report, trial, result))
            self._tell_what_waits()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how the trial ended; of one that failed, when it is known whether it begins again, and of one
        that waits from now on, when its time has come."""
        if trial_id not in self._trials:
            return
        trial = self._trials.pop(trial_id)
        if error:
            self._failed[_key(trial)] = trial
            return
        if (halving := self._halving_of(trial)) is not None:
            if halving.is_to_be_screened(trial.number):
                self._end_screening(halving, trial, result)
                return
            if result and EPOCH in result:
                halving.reported(trial.number, result[EPOCH], result[VALUE])
            halving.rests(trial.number)
            if trial.number in halving.waiting():
                return
            halving.ends(trial.number)
        self._untold.append(partial(self._tell, trial, result))
        self._tell_what_waits()

    def _see_screening(self, trial: Trial, result: Mapping[str, Any]) -> None:
        before = self._screenings.get(trial.number, -math.inf)
        self._screenings[trial.number] = max(before, result[VALUE])

    def _end_screening(
        self, halving: Halving, trial: Trial, result: Mapping[str, Any] | None
    ) -> None:
        """Optuna is told what it came to; what ended without a result has failed."""
        if not result or EPOCH not in result:
            halving.ends(trial.number)
            self._untold.append(partial(self._tell, trial, None))
        else:
            self._see_screening(trial, result)
            value = self._screenings.pop(trial.number)
            halving.screened(trial.number, value)
            halving.rests(trial.number)
            self._untold.append(partial(report, trial, SCREENING, value))
        self._tell_what_waits()

    def begins_again(self, job: Job) -> None:
        """A job that failed is handed out once more, before other steps."""
        self._again.append(job)

    def failed(self, job: Job) -> None:
        """Tell Optuna that a job has failed for good, if it is a trial of the search."""
        if (trial := self._failed_of(job)) is not None:
            if (halving := self._halving_of(trial)) is not None:
                halving.ends(trial.number)
            self._untold.append(partial(self._tell, trial, None))
            self._tell_what_waits()

    def _failed_of(self, job: Job) -> Trial | None:
        if not job.is_searched or job.of not in self._searches:  # a single trial is nobody's
            return None
        name = self._searches[job.of].study.study_name
        return self._failed.pop((name, job.number), None)

    def _tell_what_waits(self) -> None:
        """Tune would take an error here as the trial's own; it is told when the next step is asked for."""
        try:
            while self._untold and self._failure is None:
                self._untold[0]()
                self._untold.popleft()
        except AwayError:
            return
        except Exception as error:
            self._failure = error

    def _tell(self, trial: Trial, result: dict[str, Any] | None) -> None:
        if not result or EPOCH not in result:
            trial.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return
        # Of the epoch at which it is stopped, Tune tells here only.
        _report(trial, result)
        if result[EPOCH] < result[EPOCHS]:
            trial.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            return
        values = {
            "accuracy": max(curve_of(stored(trial)).values()),
            **costs_in(dict(result[METRICS])),
        }
        section = self._section_of(trial)
        tell_excesses(trial, section, values)
        told = [values[name] for name in section.objectives]
        trial.study.tell(trial, told, skip_if_finished=True)

    def _halving_of(self, trial: Trial) -> Halving | None:
        """None where the trial waits for no other."""
        is_own = trial.study.study_name == self._config.study.name
        return self._halving if is_own else None

    def _section_of(self, trial: Trial) -> StudySection:
        name = trial.study.study_name
        return next(one.section for one in self._searches.values() if one.study.study_name == name)

    def _next(self, search: _Search) -> Trial:
        """One that nobody has, left by a driver that died or by a call whose answer was lost; else a new one."""
        study = search.study
        known = trials_of(study)
        held = {*self._failed, *map(_key, self._trials.values())}
        if self._halving is not None and search is self._searches[""]:
            held |= {(study.study_name, number) for number in self._halving.waiting()}
        for trial in known:
            is_held = (study.study_name, trial.number) in held
            if trial.state == TrialState.RUNNING and not is_held:
                return self._taken_up(search, trial.number)
        study.sampler = search.sampler_of(len(known))
        return study.ask()

    def _taken_up(self, search: _Search, number: int) -> Trial:
        """One that Optuna has already."""
        search.study.sampler = search.sampler_of(number)
        return search.taken_up(trials_of(search.study)[number])


def _report(trial: Trial, result: dict[str, Any]) -> None:
    report(trial, result[EPOCH], result[VALUE])


def _job_of(trial: Trial, of: str = "") -> Job:
    return Job("baseline" if of else "trial", trial.number, dict(trial.params), of=of)


def _key(trial: Trial) -> tuple[str, int]:
    return trial.study.study_name, trial.number


def _id_of(trial: FrozenTrial) -> int:
    return trial._trial_id  # pyright: ignore[reportPrivateUsage]
