"""What a study runs, in its order: the references, the search, those of its baselines, and the test of what came.

All of it is work for one run of Tune, whose processes go from job to job: to start one takes seconds. The
test split is read by the last jobs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import optuna

from study.config import StudyConfig
from study.halving import Halving
from study.jobs import Job
from study.leftovers import Leftovers, kept_trials
from study.optuna_storage import AwayError
from study.optuna_study import NO_BASELINES, Beside, ended_states
from study.recorder import Recorder, Watcher
from study.replicates import baselines_of, finalists
from study.results import TrialRow
from study.schema import BaselineName
from study.searching import Searching, asked
from study.steps import Draw, Step
from study.yaml import dump_yaml
from trainable import tasks

_TEACHER, _BASELINE = Job("teacher"), Job("baseline")


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
        beside: Beside = NO_BASELINES,
        halving: Halving | None = None,
    ) -> None:
        """`study` is Optuna's where there is a search; `teacher_weights` exist, or are to be made."""
        self._config, self._study, self._weights = config, study, teacher_weights
        self._recorder, self._watcher, self._beside = recorder, watcher, beside
        self._halving = halving
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
        yield from asked(lambda: self._leftovers().clear(self._recorder.results))
        self.is_over = True

    def _all_steps(self, clock: Clock | None) -> Iterator[Step]:
        yield from self._references()
        if not self._lacks_teacher:
            yield from self._students(clock)
        if not self._lacks_teacher and self._recorder.results.winner is not None:
            yield from self._baselines()
        yield from self._until_all_ended()
        if not self._lacks_teacher and self._recorder.results.winner is not None:
            yield from self._replicates()
            yield from self._tests()

    def _leftovers(self) -> Leftovers:
        return Leftovers(self._study, self._weights, self._recorder.mirror, self._beside)

    @property
    def _lacks_teacher(self) -> bool:
        return self._weights is not None and not self._weights.exists()

    def _references(self) -> Iterator[Step]:
        """Train the teacher unless its weights exist, and beside it the student without a teacher."""
        jobs = [_TEACHER] if self._lacks_teacher else []
        if not jobs and self._weights is not None and self._config.trains_teacher:
            self._recorder.mirror.give(self._weights)  # a driver may have died before it had
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
        searching = Searching(self._config, self._study, self._halving, self._recorder)
        if clock is not None:
            yield from self._search(self._study, searching, clock)
        yield from searching.give_up()

    def _search(self, study: optuna.Study, searching: Searching, clock: Clock) -> Iterator[Step]:
        seconds, trials = self._seconds_left(), self._config.study.trials
        ended = yield from asked(lambda: ended_states(study))
        if len(ended) >= trials or (seconds is not None and seconds <= 0):
            return
        self._watcher.phase(f"searching: {trials} trials")
        clock.within(seconds)
        yield from searching.steps()
        clock.within(None)

    def _baselines(self) -> Iterator[Step]:
        """The searches of the baselines, all at once: they end together, or nearly so."""
        wanted, left = self._config.study.baselines, list[Step]()
        for name, study in self._beside.items():
            ended = yield from asked(lambda study=study: ended_states(study))
            left += [Draw(name)] * (wanted[name] - len(ended))
        if left:
            budgets = ", ".join(f"{name} with {trials} trials" for name, trials in wanted.items())
            self._watcher.phase(f"searching the baselines: {budgets}")
            yield from left
        for name, study in self._beside.items():
            yield from self._until(
                lambda name=name, study=study: self._is_searched(study, wanted[name], name)
            )

    def _replicates(self) -> Iterator[Step]:
        """Train what is to be tested with other seeds."""
        section = self._config.study.replicates
        if section is None:
            return
        originals = [Job.of_row(row, self._config) for row in self._to_be_answered_for()]
        jobs = [one.replicate(number) for number in range(section.seeds) for one in originals]
        jobs = [job for job in jobs if not self._has_ended(job)]
        if jobs:
            self._watcher.phase(f"training {len(jobs)} replicates with other seeds")
        yield from self._begin(*jobs)
        yield from self._until_all_ended()

    def _to_be_answered_for(self) -> list[TrialRow]:
        """Those whose test accuracy the study tells, but for the teacher."""
        config, results = self._config, self._recorder.results
        baselines = [row for row in baselines_of(results) if row.state == "complete"]
        return [*finalists(config, results), *baselines]

    def _tests(self) -> Iterator[Step]:
        """Read the test split, once for each of the replicates and the teacher; without replicates, for what they would
        have repeated."""
        results = self._recorder.results
        self._watcher.phase("testing the winner and what it is compared with")
        kept = [*kept_trials(results), *results.replicates_of_winner]
        for row in kept:
            self._keep(Job.of_row(row, self._config))
        answers = self._to_be_answered_for()
        if self._config.study.replicates is not None:
            answers = [one for row in answers for one in results.of("replicate", row.label)]
        for row in (*answers, *results.of("teacher")):
            if row.state == "complete" and row.test_accuracy is None:
                job = Job.of_row(row, self._config)
                yield replace(job, split="test")
                self._to_be_tested.append(job)
        yield from self._until(lambda: all(map(self._recorder.is_tested, self._to_be_tested)))

    def _keep(self, job: Job) -> None:
        """The weights and the config, with the MLflow run."""
        text = dump_yaml(job.config(self._config).model_dump(mode="json", exclude_none=True))
        self._recorder.keep_artifacts(job, tasks.best_weights(job.folder(self._config)), text)

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

    def _is_searched(self, study: optuna.Study, begun: int, of: BaselineName) -> bool:
        """Whether all trials of a baseline that have begun have ended, as far as Optuna's storage can be asked."""
        rows = self._recorder.results.of("baseline", of)
        with suppress(AwayError):
            return all(row.state != "running" for row in rows) and len(ended_states(study)) >= begun
        return False

    def _seconds_left(self) -> float | None:
        """Of the time budget, which an interruption does not give back."""
        searched = self._recorder.seconds_searched()
        budget = self._config.study.time_budget_s
        return None if budget is None else budget - searched

    def _is_complete(self, job: Job) -> bool:
        row = self._recorder.row(job)
        return row is not None and row.state == "complete"

    def _has_ended(self, job: Job) -> bool:
        row = self._recorder.row(job)
        return row is not None and row.state != "running"
