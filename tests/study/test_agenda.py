"""In which order a study hands out its work, and what it waits for, with two places to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from study.agenda import Agenda
from study.config import StudyConfig
from study.jobs import Job
from study.recorder import Recorder
from study.search import Step, ended_states, open_study
from tests.study.test_recorder import Nobody, Outlet, build, driver, record
from trainable import tasks

TEACHER, BASELINE = Job("teacher"), Job("baseline")
TRIALS = 3


class Clock:
    """Notes what time the search is given."""

    def __init__(self) -> None:
        self.given: list[float | None] = []

    def within(self, seconds: float | None) -> None:
        self.given.append(seconds)


class Played:
    """A driver whose jobs end as the test says."""

    def __init__(self, config: StudyConfig, weights: Path | None) -> None:
        self.study: optuna.Study = open_study(config)
        self.recorder: Recorder = driver(config, Outlet())
        self.agenda = Agenda(config, self.study, weights, self.recorder, Nobody())
        self.clock = Clock()
        self.steps: Iterator[Step] = self.agenda.steps(self.clock)

    def next(self) -> Step | None:
        return next(self.steps, None)

    def end(self, job: Job, state: str = "complete") -> None:
        self.recorder.started(job)
        if state == "complete":
            self.recorder.reported(job, record(1, 0.5), 1)
        self.recorder.ended(job, state, None if state == "complete" else "it broke")  # type: ignore[arg-type]

    def run_trial(self, state: TrialState = TrialState.COMPLETE) -> None:
        """From its draw to its end, as Tune and the searcher have it."""
        trial = self.study.ask({"optim.lr": optuna.distributions.FloatDistribution(1e-4, 1.0)})
        value = 0.5 if state == TrialState.COMPLETE else None
        self.study.tell(trial, value, state=state)
        ended = "complete" if state == TrialState.COMPLETE else "failed"
        self.end(Job("trial", trial.number, dict(trial.params)), ended)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    found = build(
        tmp_path,
        study={"name": "s", "trials": TRIALS},
        teacher={"model": "mini_resnet_10_4", "train": {"epochs": 1}},
        distill={"method": "kd", "alpha": 0.5},
    )
    found.folder.mkdir()
    kept: Any = lambda _, weights: weights.touch()  # noqa: E731
    monkeypatch.setattr(tasks, "keep_teacher", kept)
    return found


def test_a_study_from_its_teacher_to_its_tests(config: StudyConfig, tmp_path: Path) -> None:
    played = Played(config, tmp_path / "weights")
    assert [played.next() for _ in range(3)] == [TEACHER, BASELINE, "wait"]
    played.end(TEACHER)
    assert [played.next() for _ in range(TRIALS + 1)] == ["trial"] * TRIALS + ["wait"]
    for _ in range(TRIALS):
        assert played.next() == "wait"
        played.run_trial()
    assert played.clock.given == [None]
    assert played.next() == "wait"  # for the baseline, which nothing but the test waits for
    played.end(BASELINE)
    tested = [played.next() for _ in range(3)]
    assert tested == [
        Job("trial", 0, tested[0].sample, "test"),  # type: ignore[union-attr]
        Job("baseline", split="test"),
        Job("teacher", split="test"),
    ]
    for job in tested:
        assert played.next() == "wait"
        assert not played.agenda.is_over
        played.recorder.tested(job, {})  # type: ignore[arg-type]
    assert played.next() is None
    assert played.agenda.is_over


def test_a_teacher_that_failed_under_another_driver_is_waited_for(
    config: StudyConfig, tmp_path: Path
) -> None:
    first = Played(config, tmp_path / "weights")
    assert [first.next() for _ in range(2)] == [TEACHER, BASELINE]
    first.end(TEACHER, "failed")
    first.end(BASELINE)
    assert first.next() is None  # nothing is searched or tested without it
    again = Played(config, tmp_path / "weights")
    assert [again.next() for _ in range(3)] == [TEACHER, "wait", "wait"]
    again.end(TEACHER)
    assert again.next() == "trial"


def test_trials_that_optuna_does_not_know_are_not_counted(
    config: StudyConfig, tmp_path: Path
) -> None:
    """As where its storage was lost, and the ledger was not."""
    (tmp_path / "weights").touch()
    played = Played(config, tmp_path / "weights")
    played.end(TEACHER)
    played.end(BASELINE)
    for number in range(2):
        played.end(Job("trial", number, {"optim.lr": 0.1}))
    assert [played.next() for _ in range(TRIALS + 1)] == ["trial"] * TRIALS + ["wait"]
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE):
        assert played.next() == "wait"
        played.run_trial(state)
    assert len(ended_states(played.study)) == TRIALS
    last = played.next()
    assert isinstance(last, Job)
    assert last.split == "test"
