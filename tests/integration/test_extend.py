"""A study that is extended, interrupted, moved and resumed ends as one that was begun with all its trials."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from study.config import RESOLVED, StudyConfig, parse_config
from study.driver import StudyInterruptedError, extend_study, run_study
from study.folder import kept_config, only_driver, with_more_trials
from study.results import StudyResults
from study.yaml import parse_yaml
from tests.trainable.trials import OF_THE_MACHINE
from trainable.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BEGUN, TRIALS, EPOCHS = 3, 6, 4


def build(configure: Any, path: Path, trials: int) -> StudyConfig:
    asha = {"name": "asha", "grace_epochs": 2, "reduction_factor": 2}
    return configure(
        path,
        study={"trials": trials, "concurrency": 1, "seed": 5, "pruner": asha},
        train={"epochs": EPOCHS},
        search={"optim.lr": {"loguniform": [0.001, 0.1]}, "data.batch_size": {"choice": [16, 32]}},
    )


def extend(config: StudyConfig, trials: int, spy: Any) -> StudyResults:
    """As `kd-study extend` does."""
    kept = kept_config(Path(config.storage.path), config.study.name)
    return extend_study(with_more_trials(kept, trials), spy.open, before=kept)


@dataclass(frozen=True)
class Extended:
    """A study of BEGUN trials that was extended to TRIALS, interrupted in the fifth, moved and resumed."""

    first: Any
    """What it left before, read then."""
    first_page: str
    statuses: list[str]
    """MLflow's of its run: before the extension, in it, and in the end."""
    old_place: Path
    left: Any


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, configure: Any, conduct: Any) -> Any:
    """A study that was begun with all trials."""
    return conduct(build(configure, tmp_path_factory.mktemp("calm"), TRIALS))


@pytest.fixture(scope="module")
def extended(
    tmp_path_factory: pytest.TempPathFactory, configure: Any, conduct: Any, make_spy: Any
) -> Extended:
    place = tmp_path_factory.mktemp("extended")
    config = build(configure, place / "runs", BEGUN)
    first = conduct(config)
    page = (config.folder / "report.html").read_text()
    statuses, spy = [first.parent.info.status], make_spy()

    def at_epoch(row: Any, record: Any) -> None:
        if (row.number, record.epoch) == (BEGUN + 1, 2):
            until = time.monotonic() + 30
            while (status := first.parent.info.status) != "RUNNING":
                assert time.monotonic() < until, status
            statuses.append(status)
            os.kill(os.getpid(), signal.SIGINT)

    spy.at_epoch = at_epoch
    with pytest.raises(StudyInterruptedError):
        extend(config, TRIALS - BEGUN, spy)
    (place / "runs").rename(place / "moved")
    left = conduct(kept_config(place / "moved", config.study.name))
    statuses.append(left.parent.info.status)
    return Extended(first, page, statuses, place / "runs", left)


def numbers(left: Any, label: str) -> dict[str, list[tuple[int, float]]]:
    history = left.history(label)
    unequal = (*OF_THE_MACHINE, "test/accuracy")
    return {name: points for name, points in history.items() if name not in unequal}


def test_it_ends_as_one_that_was_begun_with_all_trials(extended: Extended, calm: Any) -> None:
    """The sampler's history and the pruner's rungs are those of all trials before."""
    ours, theirs = extended.left, calm
    told = ("label", "params", "state", "epochs", "value", "best_epoch")
    rows = [[[getattr(row, n) for n in told] for row in of.results.rows] for of in (ours, theirs)]
    assert rows[0] == rows[1]
    for row in ours.results.rows:
        if row.role != "teacher":
            assert numbers(ours, row.label) == numbers(theirs, row.label), row.label
    assert [t.state for t in ours.optuna_trials] == [t.state for t in theirs.optuna_trials]
    assert len(ours.optuna_trials) == TRIALS
    assert TrialState.RUNNING not in {trial.state for trial in ours.optuna_trials}
    assert ours.results.winner.label == theirs.results.winner.label
    assert ours.results.winner.test_accuracy == theirs.results.winner.test_accuracy


def test_the_test_split_is_read_once_for_each_winner(extended: Extended) -> None:
    first, last = (left.results.winner.label for left in (extended.first, extended.left))
    assert first != last  # by the choice of the seed: there is something to test again
    tested = {r.label for r in extended.left.results.rows if r.test_accuracy is not None}
    assert tested == {first, last, "baseline", "teacher"}
    for label in tested:
        assert len(extended.left.history(label)["test/accuracy"]) == 1, label


def test_its_run_goes_on_and_is_closed_again(extended: Extended) -> None:
    assert extended.statuses == ["FINISHED", "RUNNING", "FINISHED"]
    left, winners = extended.left, [of.results.winner for of in (extended.first, extended.left)]
    assert left.parent.info.run_id == extended.first.results.parent_run_id
    assert len(left.children) == TRIALS + 2
    history = left.history("study")
    assert [step for step, _ in history["best/val_accuracy"]] == list(range(1, TRIALS + 1))
    assert history["best/test_accuracy"] == [
        (trials, winner.test_accuracy)
        for trials, winner in zip((BEGUN, TRIALS), winners, strict=True)
    ]
    assert left.parent.data.tags["kd.state"] == "complete"
    assert f"{TRIALS} trial(s)" in left.parent.data.tags["mlflow.note.content"]
    assert left.parent.data.params["study.trials"] == str(BEGUN)  # MLflow's params never change
    artifacts = Path(left.config.storage.path) / "mlartifacts"
    (kept,) = artifacts.glob(f"*/{left.parent.info.run_id}/artifacts/config.yaml")
    assert parse_config(parse_yaml(kept.read_text(), "kept")).study.trials == TRIALS


def test_config_ledger_and_report_are_of_all_trials(extended: Extended) -> None:
    config, results = extended.left.config, extended.left.results
    assert kept_config(Path(config.storage.path), config.study.name).study.trials == TRIALS
    assert (results.finished, results.trials_planned) == (True, TRIALS)
    page = (config.folder / "report.html").read_text()
    assert page.count(f"trial {TRIALS - 1}") > extended.first_page.count(f"trial {TRIALS - 1}")


def test_what_was_moved_goes_on_where_it_lies(extended: Extended) -> None:
    folder = extended.left.config.folder
    for row in extended.left.results.rows:
        assert Path(row.directory).is_relative_to(folder)
        assert row.role == "teacher" or (Path(row.directory) / "epochs.jsonl").exists()
    assert not (extended.old_place / "tiny").exists()


def test_the_config_that_it_began_with_is_refused_by_name(
    extended: Extended, make_spy: Any
) -> None:
    config = extended.left.config
    section = config.study.model_copy(update={"trials": BEGUN})
    rule = rf"study\.trials: must be {TRIALS}, as the study 'tiny' began or was extended to, got 3"
    with pytest.raises(ConfigError, match=rule):
        run_study(config.model_copy(update={"study": section}), make_spy().open)


def test_an_extension_that_is_refused_changes_nothing(extended: Extended, make_spy: Any) -> None:
    config = extended.left.config
    before = (config.folder / RESOLVED).read_bytes()
    with (
        only_driver(config.folder),
        pytest.raises(ConfigError, match="another kd-study is at work"),
    ):
        extend(config, 1, make_spy())
    # Another extension, which came first, was not known when this one began.
    stale = config.model_copy(update={"study": config.study.model_copy(update={"trials": 5})})
    with pytest.raises(ConfigError, match=rf"^study\.trials: must be {TRIALS}, .* got 5"):
        extend_study(with_more_trials(stale, 2), make_spy().open, before=stale)
    assert (config.folder / RESOLVED).read_bytes() == before
    spy = make_spy()
    assert run_study(config, spy.open) == extended.left.results
    assert spy.phases == []
