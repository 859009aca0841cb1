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
from study.folder import with_more_trials
from study.jobs import Job
from study.mirror import NoMirror
from study.optuna_study import ended_states, open_baselines, open_study
from study.recorder import Recorder
from study.schema import ReplicatesConfig
from study.steps import Draw, Step
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
        self.beside = open_baselines(config, self.study)
        self.recorder: Recorder = driver(config, Outlet())
        self.agenda = Agenda(config, self.study, weights, self.recorder, Nobody(), self.beside)
        self.clock = Clock()
        self.steps: Iterator[Step] = self.agenda.steps(self.clock)

    def next(self) -> Step | None:
        return next(self.steps, None)

    def end(self, job: Job, state: str = "complete", epochs: int = 1) -> None:
        self.recorder.started(job)
        if state != "failed":
            for epoch in range(1, epochs + 1):
                self.recorder.reported(job, record(epoch, 0.5), epochs)
        self.recorder.ended(job, state, None if state == "complete" else "it broke")  # type: ignore[arg-type]

    def run_trial(self, state: TrialState = TrialState.COMPLETE, of: str = "") -> Job:
        """From its draw to its end, as Tune and the searcher have it."""
        study = self.beside[of] if of else self.study  # type: ignore[index]
        trial = study.ask({"optim.lr": optuna.distributions.FloatDistribution(1e-4, 1.0)})
        value = 0.5 if state == TrialState.COMPLETE else None
        study.tell(trial, value, state=state)
        ended = "complete" if state == TrialState.COMPLETE else "failed"
        job = Job("baseline" if of else "trial", trial.number, dict(trial.params), of=of)
        self.end(job, ended)
        return job


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


def test_a_teacher_that_is_there_is_given_to_the_bucket_in_case_it_was_not(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []
    monkeypatch.setattr(NoMirror, "give", lambda self, path: given.append(path))
    weights = tmp_path / "weights"
    weights.touch()
    Played(config, weights).next()
    assert given == [weights]
    assert config.teacher is not None
    own = config.teacher.model_copy(update={"checkpoint": weights, "train": None})
    Played(config.model_copy(update={"teacher": own}), weights).next()
    assert given == [weights]


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


def answering(config: StudyConfig, **study: Any) -> StudyConfig:
    return config.model_copy(update={"study": config.study.model_copy(update=study)})


def until_waiting(played: Played) -> list[Job]:
    """The jobs that are handed out before something has to end."""
    steps = iter(played.next, "wait")
    jobs = [step for step in steps if isinstance(step, Job)]
    assert played.next() == "wait"
    return jobs


def test_what_is_tested_of_a_study_with_replicates(config: StudyConfig, tmp_path: Path) -> None:
    """The winner and two baselines, twice each, when all is known that chooses them; themselves they are not."""
    (tmp_path / "weights").touch()
    replicates = ReplicatesConfig(finalists=2, seeds=2)
    config = answering(config, trials=2, baselines={"none": 2}, replicates=replicates)
    played = Played(config, tmp_path / "weights")
    for job in (TEACHER, BASELINE):
        played.end(job)
    assert [played.next() for _ in range(3)] == ["trial", "trial", "wait"]
    first, second = played.run_trial(), played.run_trial()
    assert [played.next() for _ in range(3)] == [Draw("none"), Draw("none"), "wait"]
    alone, _ = played.run_trial(of="none"), played.run_trial(of="none")
    jobs = until_waiting(played)
    originals = (first, second, BASELINE, alone)
    assert jobs == [job.replicate(number) for number in range(2) for job in originals]
    for job in jobs[1:]:
        played.end(job)
    played.end(jobs[0], "failed")
    tested = until_waiting(played)
    whole = [*(job for job in jobs if job.of != first.label), *jobs[4:5], TEACHER]
    assert {job.label for job in tested} == {job.label for job in whole}
    assert {job.split for job in tested} == {"test"}
    for job in tested:
        played.recorder.tested(job, {"test/accuracy": 0.5})
    assert played.next() is None
    assert played.agenda.is_over


def test_another_driver_goes_on_with_replicates_and_baselines(
    config: StudyConfig, tmp_path: Path
) -> None:
    (tmp_path / "weights").touch()
    config = answering(
        config, trials=1, baselines={"none": 2, "kd": 1}, replicates=ReplicatesConfig(seeds=2)
    )
    first = Played(config, tmp_path / "weights")
    for job in (TEACHER, BASELINE):
        first.end(job)
    assert [first.next() for _ in range(2)] == ["trial", "wait"]
    trial = first.run_trial()
    draws = [first.next() for _ in range(4)]
    assert draws == [Draw("none"), Draw("none"), Draw("kd"), "wait"]
    first.run_trial(of="none")
    again = Played(config, tmp_path / "weights")
    assert [again.next() for _ in range(3)] == [Draw("none"), Draw("kd"), "wait"]
    again.run_trial(of="none")
    again.run_trial(TrialState.FAIL, of="kd")
    jobs = until_waiting(again)
    assert {job.of for job in jobs} == {trial.label, "baseline", "baseline none 0"}  # no kd ended
    again.end(jobs[0])
    again.recorder.started(jobs[1])
    last = Played(config, tmp_path / "weights")
    assert until_waiting(last) == jobs[1:]


def test_nothing_is_compared_with_a_winner_that_there_is_not(
    config: StudyConfig, tmp_path: Path
) -> None:
    (tmp_path / "weights").touch()
    config = answering(
        config, trials=1, baselines={"none": 2}, replicates=ReplicatesConfig(seeds=2)
    )
    played = Played(config, tmp_path / "weights")
    for job in (TEACHER, BASELINE):
        played.end(job)
    assert [played.next() for _ in range(2)] == ["trial", "wait"]
    played.run_trial(TrialState.FAIL)
    assert played.next() is None


def test_an_extension_goes_on_with_the_search_of_a_baseline(
    config: StudyConfig, tmp_path: Path
) -> None:
    (tmp_path / "weights").touch()
    config = answering(config, trials=1, baselines={"none": 1})
    for longer, begun in ((config, 0), (with_more_trials(config, 2), 1)):
        played = Played(longer, tmp_path / "weights")
        played.recorder.take_up(ended_states(played.study))
        if not begun:
            played.end(TEACHER)
            played.end(BASELINE)
        count = longer.study.trials - begun
        assert [played.next() for _ in range(count)] == ["trial"] * count
        for _ in range(count):
            played.run_trial()
        assert [played.next() for _ in range(count)] == [Draw("none")] * count
        assert [played.run_trial(of="none").number for _ in range(count)] == [
            *range(begun, begun + count)
        ]
        tested = played.next()
        assert isinstance(tested, Job)
        assert tested.split == "test"


def test_baselines_are_searched_also_when_the_searchs_time_is_up(
    config: StudyConfig, tmp_path: Path
) -> None:
    """Tune is run once more then, without a clock."""
    (tmp_path / "weights").touch()
    config = answering(config, trials=2, baselines={"none": 1})
    first = Played(config, tmp_path / "weights")
    for job in (TEACHER, BASELINE):
        first.end(job)
    assert [first.next() for _ in range(2)] == ["trial", "trial"]
    first.run_trial()
    ask(first)
    rest = first.agenda.steps(None)
    assert [next(rest) for _ in range(2)] == [Draw("none"), "wait"]
    states = {row.label: row.state for row in first.recorder.results.of("trial")}
    assert states == {"trial 0": "complete", "trial 1": "pruned"}


def ask(played: Played) -> optuna.Trial:
    return played.study.ask({"optim.lr": optuna.distributions.FloatDistribution(1e-4, 1.0)})


def end(played: Played, trial: optuna.Trial, epochs: int, state: str = "complete") -> None:
    told = TrialState.COMPLETE if state == "complete" else TrialState.PRUNED
    played.study.tell(trial, 0.5 if state == "complete" else None, state=told)
    played.end(Job("trial", trial.number, dict(trial.params)), state, epochs)


def test_no_trial_begins_that_could_exceed_the_budget_of_epochs(
    config: StudyConfig, tmp_path: Path
) -> None:
    """Of 25 epochs with trials of 10: two at once, and another when one was pruned after 4."""
    (tmp_path / "weights").touch()
    train = config.train.model_copy(update={"epochs": 10})
    config = answering(config, trials=9, epoch_budget=25).model_copy(update={"train": train})
    first = Played(config, tmp_path / "weights")
    for job in (TEACHER, BASELINE):
        first.end(job)
    running = []
    for _ in range(2):
        assert first.next() == "trial"
        running.append(ask(first))
    assert first.next() == "wait"
    end(first, running[0], 4, "pruned")
    assert first.next() == "trial"
    running.append(ask(first))
    assert first.next() == "wait"
    again = Played(config, tmp_path / "weights")  # which takes up the two that ran
    assert [again.next() for _ in range(3)] == ["trial", "trial", "wait"]
    for trial in running[1:]:
        end(again, trial, 10)
    last = again.next()
    assert isinstance(last, Job)
    assert last.split == "test"
    assert sum(row.epochs for row in again.recorder.results.of("trial")) == 24


def test_an_extended_study_has_its_budget_of_epochs_anew(
    config: StudyConfig, tmp_path: Path
) -> None:
    (tmp_path / "weights").touch()
    train = config.train.model_copy(update={"epochs": 10})
    config = answering(config, trials=2, epoch_budget=10).model_copy(update={"train": train})
    first = Played(config, tmp_path / "weights")
    first.recorder.take_up({})
    for job in (TEACHER, BASELINE):
        first.end(job)
    assert first.next() == "trial"
    end(first, ask(first), 10)
    assert isinstance(first.next(), Job)  # tested: there is no room for the second
    again = Played(answering(config, trials=3), tmp_path / "weights")
    again.recorder.take_up(ended_states(again.study))
    assert again.next() == "trial"
    end(again, ask(again), 10)
    assert isinstance(again.next(), Job)
