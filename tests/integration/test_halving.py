"""A study whose trials wait for each other, in real processes: undisturbed, interrupted, and killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from study.config import StudyConfig
from study.driver import StudyInterruptedError
from tests.trainable.trials import OF_THE_MACHINE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRIALS, EPOCHS = 8, 8
STEADY = {"schedule": "multistep", "milestones": [6]}
"""Trials of 8 epochs then wait after 1, 2 and 4."""


def build(configure: Any, path: Path, pruner: str = "halving", **changes: Any) -> StudyConfig:
    study = {
        "trials": TRIALS,
        "concurrency": 1,
        "sampler": "random",
        "pruner": {"name": pruner},
        **changes.pop("study", {}),
    }
    search = {"optim.lr": {"loguniform": [0.001, 0.1]}, "data.batch_size": {"choice": [16, 32]}}
    train = {"epochs": EPOCHS}
    return configure(path, study=study, train=train, optim=STEADY, search=search, **changes)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, configure: Any, conduct: Any) -> Any:
    return conduct(build(configure, tmp_path_factory.mktemp("calm")))


def numbers(left: Any, label: str) -> dict[str, list[tuple[int, float]]]:
    history = left.history(label)
    return {name: points for name, points in history.items() if name not in OF_THE_MACHINE}


def test_every_trial_ends_at_a_point_or_whole(calm: Any) -> None:
    rows = calm.results.of("trial")
    assert len(rows) == TRIALS
    ends = sorted((row.state, row.epochs) for row in rows)
    assert set(ends) <= {("pruned", 1), ("pruned", 2), ("pruned", 4), ("complete", EPOCHS)}
    assert ends.count(("pruned", 1)) >= TRIALS // 2 - 1
    assert ("complete", EPOCHS) in ends
    assert calm.results.winner.epochs == EPOCHS
    states = [trial.state for trial in calm.optuna_trials]
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.COMPLETE) == ends.count(("complete", EPOCHS))


def test_the_runs_are_closed_and_say_how_they_ended(calm: Any) -> None:
    for row in calm.results.of("trial"):
        run = calm.child(row.label)
        assert run.data.tags["kd.state"] == row.state
        assert run.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[row.state]
        points = calm.history(row.label)["val/accuracy"]
        assert [step for step, _ in points] == list(range(1, row.epochs + 1))
    assert "study/waiting" in calm.history("study")
    assert calm.parent.data.metrics["study/waiting"] == 0


def test_a_trial_in_pieces_is_the_trial_that_it_would_have_been(
    tmp_path: Path, calm: Any, configure: Any, conduct: Any
) -> None:
    whole = conduct(build(configure, tmp_path, pruner="none"))
    row = calm.results.winner
    assert whole.results.row("trial", row.number).params == row.params
    ours, theirs = (numbers(left, row.label) for left in (calm, whole))
    assert ours.keys() - theirs.keys() == {"test/accuracy"} - theirs.keys()
    for name in ours.keys() & theirs.keys():
        assert ours[name] == theirs[name], name


def test_only_what_could_still_go_on_kept_a_checkpoint_to_the_end(calm: Any) -> None:
    for row in calm.results.of("trial"):
        assert not list(Path(row.directory).glob("checkpoints/*")), row.label


@pytest.mark.parametrize("after", [(1, 1), (3, 3), (TRIALS - 1, 1)], ids=str)
def test_an_interrupted_study_ends_as_one_that_was_left_alone(
    tmp_path: Path, calm: Any, configure: Any, conduct: Any, make_spy: Any, after: tuple[int, int]
) -> None:
    """Also where it is interrupted at the very epoch after which a trial waits."""
    config, spy, sent = build(configure, tmp_path), make_spy(), []

    def at_epoch(row: Any, record: Any) -> None:
        if row.role == "trial" and (row.number, record.epoch) >= after and not sent:
            sent.append(row.label)
            os.kill(os.getpid(), signal.SIGINT)

    spy.at_epoch = at_epoch
    with pytest.raises(StudyInterruptedError):
        conduct(config, spy)
    assert sent
    again = make_spy()
    left = conduct(config, again)
    assert any(row.state == "waiting" for row in again.rested)
    told = ("label", "params", "state", "epochs", "value", "best_epoch")
    rows, others = (
        [[getattr(row, name) for name in told] for row in one.results.of("trial")]
        for one in (left, calm)
    )
    assert rows == others
    for row in left.results.of("trial"):
        assert numbers(left, row.label) == numbers(calm, row.label), row.label
    assert [t.state for t in left.optuna_trials] == [t.state for t in calm.optuna_trials]


def test_a_budget_of_epochs_leaves_enough_for_a_winner(
    tmp_path: Path, configure: Any, conduct: Any
) -> None:
    left = conduct(build(configure, tmp_path, study={"epoch_budget": 20}))
    rows = left.results.of("trial")
    assert sum(row.epochs for row in rows) <= 20
    assert 4 <= len(rows) <= TRIALS  # two without halving
    assert left.results.winner.epochs == EPOCHS


def screened(configure: Any, path: Path) -> StudyConfig:
    screening = {"epochs": 2, "subset": 0.5}
    study = {"trials": 5, "concurrency": 1, "sampler": "random", "screening": screening}
    search = {"optim.lr": {"loguniform": [0.001, 0.1]}}
    return configure(path, study=study, train={"epochs": 4}, search=search)


def test_a_screened_study_trains_the_better_half_from_the_beginning(
    tmp_path: Path, configure: Any, conduct: Any, make_spy: Any
) -> None:
    """And again where it is interrupted, in a screening and in a trial."""
    calm = conduct(screened(configure, tmp_path / "calm"))
    screenings = calm.results.of("screening")
    assert [row.state for row in screenings] == ["complete"] * 5
    assert {row.epochs for row in screenings} == {2}
    ends = [(row.state, row.epochs) for row in calm.results.of("trial")]
    assert set(ends) == {("complete", 4), ("pruned", 0)}
    assert len(ends) == 5
    # Who was of the better half when it came may not be later.
    assert 1 <= ends.count(("complete", 4)) <= 3
    best = max(screenings, key=lambda row: row.value)
    assert calm.results.row("trial", best.number).state == "complete"
    for row in (*screenings, *calm.results.of("trial")):
        run = calm.child(row.label)
        assert run.data.tags["kd.state"] == row.state
        assert run.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[row.state]
    config, sent = screened(configure, tmp_path / "interrupted"), list[str]()
    for label, epoch in (("screening 2", 1), (calm.results.winner.label, 3)):
        spy = make_spy()

        def at_epoch(row: Any, record: Any, label: str = label, epoch: int = epoch) -> None:
            if (row.label, record.epoch) == (label, epoch) and label not in sent:
                sent.append(label)
                os.kill(os.getpid(), signal.SIGINT)

        spy.at_epoch = at_epoch
        with pytest.raises(StudyInterruptedError):
            conduct(config, spy)
    left = conduct(config)
    told = ("label", "params", "state", "epochs", "value", "best_epoch")
    rows, others = (
        sorted([getattr(row, name) for name in told] for row in one.results.rows)
        for one in (left, calm)
    )
    assert rows == others
    for row in left.results.rows:
        assert numbers(left, row.label) == numbers(calm, row.label), row.label
    states = [trial.state for trial in left.optuna_trials]
    assert states == [trial.state for trial in calm.optuna_trials]
    assert TrialState.RUNNING not in states
