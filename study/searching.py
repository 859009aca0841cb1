"""The steps of the study's own search: whose turn it is when there is a place, and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import optuna

from study.budget import has_room
from study.config import StudyConfig
from study.halving import Halving
from study.jobs import Job
from study.optuna_storage import AwayError
from study.optuna_study import ended_states, prune, trials_of, unfinished
from study.recorder import Recorder
from study.steps import GoOn, Step

_T = TypeVar("_T")


def asked(question: Callable[[], _T]) -> Generator[Step, None, _T]:
    """The answer of Optuna's storage, which may be away for a while."""
    while True:
        try:
            return question()
        except AwayError:
            yield "wait"


class Searching:
    """What is left of a search."""

    def __init__(
        self, config: StudyConfig, study: optuna.Study, halving: Halving | None, recorder: Recorder
    ) -> None:
        self._config, self._study, self._recorder = config, study, recorder
        self._halving = halving
        self._begun = 0

    def steps(self) -> Iterator[Step]:
        """Until all trials have ended, or wait in vain."""
        ended = yield from asked(lambda: ended_states(self._study))
        left = yield from asked(lambda: unfinished(self._study))
        self._begun = len(ended) + len(left)
        self._waits_as_it_did(left)
        # What a driver that died had begun is within the budget.
        for _ in range(len(left) - len(self._waiting())):
            yield "trial"
        while (step := (yield from self._next())) is not None:
            yield step
        while not self._has_ended():
            yield "wait"

    def give_up(self) -> Iterator[Step]:
        """Whatever still runs was stopped by the time budget, and what waits will not go on."""
        for job in (yield from asked(lambda: unfinished(self._study))):
            yield from self._prune(job)

    def _waits_as_it_did(self, left: list[Job]) -> None:
        """A driver may have died before it wrote down that a trial waits, or when one had gone on."""
        if self._halving is None:
            return
        for job in left:
            if job.number not in self._waiting():
                continue
            row = self._recorder.row(job)
            if row is not None and row.state == "running":
                if row.until is not None and self._halving.epoch(job.number) >= row.until:
                    self._recorder.waits(job)
                else:
                    self._halving.begins(job.number)
            elif self._is_running(screening := replace(job, role="screening")):
                self._recorder.ended(screening, "complete")

    def _next(self) -> Generator[Step, None, Step | None]:
        """Nothing after the last."""
        yield from self._drop_hopeless()
        ended = yield from asked(lambda: ended_states(self._study))
        running = self._begun - len({*ended, *self._waiting()})
        wants_more = self._begun < self._config.study.trials
        resting = [*ended, *self._waiting()]
        may_draw = wants_more and self._has_room(resting, running)
        if self._halving is not None:
            number = self._halving.next_up(
                # Those that run may rest early, and leave room.
                are_more=wants_more and self._has_room(resting, 0),
                fits=lambda number: self._may_go_on(number, ended, running),
            )
            if number is not None:
                return GoOn(number)
        if may_draw:
            self._begun += 1
            return "trial"
        return "wait" if running > 0 else None

    def _drop_hopeless(self) -> Iterator[Step]:
        if self._halving is None:
            return
        for number in self._halving.hopeless():
            trial = (yield from asked(lambda: trials_of(self._study)))[number]
            yield from self._prune(Job("trial", number, dict(trial.params)))
            self._halving.ends(number)

    def _prune(self, job: Job) -> Iterator[Step]:
        yield from asked(lambda: prune(self._study, job))
        screening = replace(job, role="screening")
        self._recorder.ended(screening if self._is_running(screening) else job, "pruned")

    def _is_running(self, job: Job) -> bool:
        row = self._recorder.row(job)
        return row is not None and row.state == "running"

    def _may_go_on(self, number: int, ended: Collection[int], running: int) -> bool:
        others = [one for one in (*ended, *self._waiting()) if one != number]
        return self._has_room(others, running)

    def _has_room(self, resting: list[int], running: int) -> bool:
        return has_room(self._config, self._recorder.results, resting, running)

    def _waiting(self) -> tuple[int, ...]:
        return () if self._halving is None else self._halving.waiting()

    def _has_ended(self) -> bool:
        """Whether all that have begun have ended or wait, as far as Optuna's storage can be asked."""
        results = self._recorder.results
        rows = (*results.of("screening"), *results.of("trial"))
        with suppress(AwayError):
            known = {*ended_states(self._study), *self._waiting()}
            return all(row.state != "running" for row in rows) and len(known) >= self._begun
        return False
