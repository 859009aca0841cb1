"""What a study runs, in its order: the references, the search, and the test of what came of them.

All of it is work for one run of Tune, whose processes go from job to job: to start one takes seconds. The
test split is read by the last jobs only.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import optuna

from study.config import StudyConfig
from study.jobs import Job
from study.leftovers import Leftovers, kept_trials
from study.optuna_storage import AwayError
from study.recorder import Recorder, Watcher
from study.search import Step, ended_states, prune, unfinished
from study.yaml import dump_yaml
from trainable import tasks

_TEACHER, _BASELINE = Job("teacher"), Job("baseline")

_T = TypeVar("_T")


class Clock(Protocol):
    """Ends a run of Tune when the time is up."""

    def within(self, seconds: float | None) -> None: ...


class Agenda:
    """The steps of a study that are left."""

    def __init__(
        self,
        config: StudyConfig,
        study: optuna.Study | None,
        teacher_weights: Path | None,
        recorder: Recorder,
        watcher: Watcher,
    ) -> None:
        """`study` is Optuna's where there is a search; `teacher_weights` exist, or are to be made."""
        self._config, self._study, self._weights = config, study, teacher_weights
        self._recorder, self._watcher = recorder, watcher
        self._begun: list[Job] = []
        self._to_be_tested: list[Job] = []
        self.is_over = False
        """Whether the last step was taken."""

    def steps(self, clock: Clock | None) -> Iterator[Step]:
        """What comes next, each time when there is a place for it.

        Nothing is searched or tested without the teacher that the study is to have; nothing is searched
        without a clock.
        """
        self._begun, self._to_be_tested = [], []
        leftovers = self._leftovers()
        for step in self._all_steps(clock):
            with suppress(AwayError):  # then with a later step
                leftovers.clear(self._recorder.results)
            yield step
        # Once more from the start: a process that was killed may have written until just now.
        yield from self._asked(lambda: self._leftovers().clear(self._recorder.results))
        self.is_over = True

    def _all_steps(self, clock: Clock | None) -> Iterator[Step]:
        yield from self._references()
        if not self._lacks_teacher:
            yield from self._students(clock)
        yield from self._until_all_ended()
        if not self._lacks_teacher:
            yield from self._tests()

    def _leftovers(self) -> Leftovers:
        return Leftovers(self._study, self._weights, self._recorder.mirror)

    @property
    def _lacks_teacher(self) -> bool:
        return self._weights is not None and not self._weights.exists()

    def _references(self) -> Iterator[Step]:
        """Train the teacher unless its weights exist, and beside it the student without a teacher."""
        jobs = [_TEACHER] if self._lacks_teacher else []
        if self._config.search and not self._has_ended(_BASELINE):
            jobs.append(_BASELINE)
        if jobs:
            self._watcher.phase(f"training the {' and the '.join(job.role for job in jobs)}")
        yield from self._begin(*jobs)
        if _TEACHER in jobs:
            yield from self._until(lambda: self._has_ended(_TEACHER))
            if self._is_complete(_TEACHER):
                assert self._weights is not None
                folder = _TEACHER.folder(self._config)
                self._recorder.mirror.bring(tasks.best_weights(folder))
                tasks.keep_teacher(folder, self._weights)
                self._recorder.mirror.give(self._weights)
        elif self._weights is not None and not self._is_complete(_TEACHER):
            self._recorder.started(_TEACHER)
            yield from self._begin(replace(_TEACHER, split="val"))

    def _students(self, clock: Clock | None) -> Iterator[Step]:
        if self._study is None:
            if not self._has_ended(Job("trial")):
                self._watcher.phase("training the student")
                yield from self._begin(Job("trial"))
            return
        if clock is not None:
            yield from self._search(self._study, clock)
        # Whatever still runs was stopped by the time budget.
        study = self._study
        for job in (yield from self._asked(lambda: unfinished(study))):
            yield from self._asked(lambda job=job: prune(study, job))
            if self._recorder.row(job) is None:
                self._recorder.started(job)
            self._recorder.ended(job, "pruned")

    def _search(self, study: optuna.Study, clock: Clock) -> Iterator[Step]:
        seconds, trials = self._seconds_left(), self._config.study.trials
        remaining = trials - len((yield from self._asked(lambda: ended_states(study))))
        if remaining <= 0 or (seconds is not None and seconds <= 0):
            return
        self._watcher.phase(f"searching: {trials} trials")
        clock.within(seconds)
        for _ in range(remaining):
            yield "trial"
        yield from self._until(lambda: self._is_searched(study))
        clock.within(None)

    def _tests(self) -> Iterator[Step]:
        """Read the test split, once for each of the winner, the baseline and the teacher."""
        results = self._recorder.results
        if results.winner is None:
            return
        self._watcher.phase("testing the winner and what it is compared with")
        for row in kept_trials(results):
            job = Job.of(row, self._config)
            text = dump_yaml(job.config(self._config).model_dump(mode="json", exclude_none=True))
            self._recorder.keep_artifacts(job, tasks.best_weights(job.folder(self._config)), text)
        for job in (Job.of(results.winner, self._config), _BASELINE, _TEACHER):
            row = self._recorder.row(job)
            if row is not None and row.state == "complete" and row.test_accuracy is None:
                yield replace(job, split="test")
                self._to_be_tested.append(job)
        yield from self._until(lambda: all(map(self._recorder.is_tested, self._to_be_tested)))

    def _begin(self, *jobs: Job) -> Iterator[Step]:
        for job in jobs:
            if self._has_ended(job):  # under another driver: that does not count any more
                self._recorder.started(job)
            self._begun.append(job)
            yield job

    def _until_all_ended(self) -> Iterator[Step]:
        return self._until(lambda: all(self._has_ended(job) for job in self._begun))

    def _until(self, is_so: Callable[[], bool]) -> Iterator[Step]:
        while not is_so():
            yield "wait"

    def _asked(self, question: Callable[[], _T]) -> Generator[Step, None, _T]:
        """The answer of Optuna's storage, which may be away for a while."""
        while True:
            try:
                return question()
            except AwayError:
                yield "wait"

    def _is_searched(self, study: optuna.Study) -> bool:
        """Whether all trials have ended, as far as Optuna's storage can be asked."""
        with suppress(AwayError):
            return self._no_trial_runs and len(ended_states(study)) >= self._config.study.trials
        return False

    def _seconds_left(self) -> float | None:
        """Of the time budget, which an interruption does not give back."""
        searched = self._recorder.seconds_searched()
        budget = self._config.study.time_budget_s
        return None if budget is None else budget - searched

    @property
    def _no_trial_runs(self) -> bool:
        return all(row.state != "running" for row in self._recorder.results.of("trial"))

    def _is_complete(self, job: Job) -> bool:
        row = self._recorder.row(job)
        return row is not None and row.state == "complete"

    def _has_ended(self, job: Job) -> bool:
        row = self._recorder.row(job)
        return row is not None and row.state != "running"
