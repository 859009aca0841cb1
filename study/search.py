"""OptunaSearch that takes the steps of a study one after the other, and that tells Optuna the truth.

It stands between Tune, which names trials by ids and asks for the next, and `study.trials`, which draws and tells.
While Optuna's storage is away, what it is to be told waits here, and no trial is drawn: it follows from all that
was known.

A trial that breaks a constraint before it trains is PRUNED without having begun.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from study.baselines import baseline_search
from study.config import StudyConfig
from study.halving import Halving
from study.jobs import Job
from study.objectives import Values
from study.optuna_storage import AwayError, OptunaError
from study.optuna_study import NO_BASELINES, Beside
from study.pieces import TrialsInPieces
from study.steps import Draw, GoOn, Step
from study.trials import Telling, Trials
from trainable.records import VALUE

KnownBefore = Callable[[Job], Values]
"""Values of a trial that break a constraint whatever it would learn, so that it is not to be trained; else none."""

_LOOK_S = 0.25
"""Between two looks whether a storage is back."""

_KEPT_BACK = object()
"""Instead of a suggestion: the step's trial was over before it began."""


class StudySearch(OptunaSearch):
    """Ray's searcher over one Optuna study, and those of the baselines beside it."""

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
        self._searches: dict[str, Trials] = {
            name: Trials(baseline, baseline_search(config, name), name)
            for name, baseline in beside.items()
        }
        """By `Job.of`: the study's own has no name."""
        if study is not None:
            pieces = halving and TrialsInPieces(study, config, halving)
            self._searches[""] = pieces or Trials(study, config)
        self._step: Step | str | None = None
        self._running: dict[str, tuple[str, Trial]] = {}
        """By Tune's id: of which search a trial is."""
        self._failed: dict[tuple[str, int], Trial] = {}
        """By search and number, until it is known whether it begins again."""
        self._untold: deque[Telling] = deque()
        """In their order."""
        self._again: list[Job] = []
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
                self._running[trial_id] = job.of, trial
            return {"job": job.to_dict()}
        suggestion = _KEPT_BACK
        while suggestion is _KEPT_BACK:
            if self._untold:
                return None
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
                return self._drawn("", trial_id)
            case Draw(of=name):
                return self._drawn(name, trial_id)
            case GoOn(number=number):
                trials = self._searches[""]
                return self._handed_out("", trials.taken_up(number), trial_id)
            case "wait":
                return None
            case finished:
                return finished

    def _drawn(self, of: str, trial_id: str) -> Any:
        """A trial: an unfinished one if there is any, else a new one, unless it is over before it begins."""
        trials = self._searches[of]
        running = (trial.number for name, trial in self._running.values() if name == of)
        failed = (number for name, number in self._failed if name == of)
        trial = trials.next({*running, *failed})
        job = trials.draw(trial)
        if values := self._known_before(job):
            self._tell(trials.keep_back(trial, values))
            return _KEPT_BACK
        return self._handed_out(of, trial, trial_id)

    def _handed_out(self, of: str, trial: Trial, trial_id: str) -> Any:
        trials = self._searches[of]
        self._running[trial_id] = of, trial
        return {"job": trials.piece_of(trials.job_of(trial)).to_dict()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Let Optuna see the curve."""
        if trial_id in self._running:
            of, trial = self._running[trial_id]
            self._tell(self._searches[of].reported(trial, result))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how the trial ended; of one that failed, when it is known whether it begins again, and of one
        that waits from now on, when its time has come."""
        if trial_id not in self._running:
            return
        of, trial = self._running.pop(trial_id)
        if error:
            self._failed[of, trial.number] = trial
        else:
            self._tell(self._searches[of].ended(trial, result))

    def begins_again(self, job: Job) -> None:
        """A job that failed is handed out once more, before other steps."""
        self._again.append(job)

    def failed(self, job: Job) -> None:
        """Tell Optuna that a job has failed for good, if it is a trial of the search."""
        if (trial := self._failed_of(job)) is not None:
            self._tell(self._searches[job.of].failed(trial))

    def _failed_of(self, job: Job) -> Trial | None:
        return self._failed.pop((job.of, job.number), None) if job.is_searched else None

    def _tell(self, telling: Telling | None) -> None:
        if telling is not None:
            self._untold.append(telling)
            self._tell_what_waits()

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
