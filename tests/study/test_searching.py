"""What a driver makes of the trials of a search that the one before it left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from study.halving import Halving
from study.jobs import Job
from study.optuna_study import open_study
from study.pieces import open_halving
from study.recorder import Recorder
from study.searching import Searching
from tests.study.test_recorder import Outlet, build, driver, record


class Left:
    """A study of three epochs, whose trials wait after the first and the second, as its driver was killed."""

    def __init__(self, folder: Path, **study: Any) -> None:
        self._config = build(
            folder,
            study={"name": "s", "trials": 9, "pruner": {"name": "halving"}, **study},
            train={"epochs": 3},
            optim={"schedule": "multistep", "milestones": [2]},
        )
        self._config.folder.mkdir()
        self._study = open_study(self._config)
        self._recorder = driver(self._config, Outlet())
        self.jobs: list[Job] = []

    def trained(self, value: float) -> Job:
        """A trial's first epoch, of which Optuna was told, and the ledger not that it waits."""
        trial = self._study.ask({"optim.lr": optuna.distributions.FloatDistribution(1e-4, 1.0)})
        job = Job("trial", trial.number, dict(trial.params), until=1)
        self._recorder.started(job)
        trial.report(value, 1)
        self._recorder.reported(job, record(1, value), 3)
        return job

    def waits(self, value: float) -> Job:
        job = self.trained(value)
        self._recorder.waits(job)
        return job

    def goes_on(self, job: Job, until: int | None) -> None:
        self._recorder.started(replace(job, until=until))

    def taken_up(self) -> tuple[Searching, Halving, Recorder]:
        """By the next driver."""
        recorder, study = driver(self._config, Outlet()), open_study(self._config)
        recorder.take_up({})
        halving = open_halving(self._config, study)
        assert halving is not None
        return Searching(self._config, study, halving, recorder), halving, recorder


@pytest.mark.parametrize("until", [2, None])
def test_a_trial_that_had_gone_on_goes_on(tmp_path: Path, until: Any) -> None:
    """Though better ones have come since, and its new piece has reported nothing yet."""
    left = Left(tmp_path)
    left.waits(0.1)
    promoted = left.waits(0.2)
    left.goes_on(promoted, until)
    for value in (0.3, 0.4, 0.5):
        left.waits(value)
    searching, halving, recorder = left.taken_up()
    steps = searching.steps()
    assert next(steps) == "trial"
    assert halving.waiting() == (0, 2, 3, 4)
    assert recorder.results.rows[1].state == "running"


def test_a_trial_whose_driver_died_before_it_wrote_that_it_waits_waits(tmp_path: Path) -> None:
    left = Left(tmp_path)
    left.trained(0.2)
    searching, halving, recorder = left.taken_up()
    assert next(searching.steps()) == "trial"  # a new one
    assert halving.waiting() == (0,)
    assert recorder.results.rows[0].state == "waiting"


def test_where_a_running_trial_holds_the_budget_others_may_still_be_drawn(tmp_path: Path) -> None:
    """It may rest early: half of three is not yet two."""
    left = Left(tmp_path, epoch_budget=7)
    left.waits(0.1)
    promoted = left.waits(0.3)
    left.goes_on(promoted, 2)
    left.waits(0.2)
    searching, halving, _ = left.taken_up()
    steps = searching.steps()
    assert next(steps) == "trial"  # the one that had gone on
    assert next(steps) == "wait"
    halving.ends(promoted.number)
    assert halving.next_up(are_more=False) == 2
