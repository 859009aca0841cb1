"""What stays on disk of trials that are over, and what does not; the files are made up, Optuna's study is real."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from study.config import StudyConfig
from study.jobs import Job
from study.leftovers import Leftovers
from study.mirror import NoMirror
from study.optuna_storage import AwayError
from study.optuna_study import open_baselines, open_study
from study.results import Role, State, StudyResults, TrialRow
from tests.study.studies import results_of
from tests.study.test_recorder import build
from trainable import tasks

WHOLE, WEIGHTS, NOTHING = {"checkpoints", "best"}, {"best"}, set[str]()
_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


class Study:
    """A study whose trials end as the test says."""

    def __init__(self, folder: Path) -> None:
        study = {"name": "s", "baselines": {"none": 5}}
        self.config: StudyConfig = build(folder, study=study)
        self.config.folder.mkdir()
        self.optuna: optuna.Study = open_study(self.config)
        self.beside = open_baselines(self.config, self.optuna)
        self.results: StudyResults = results_of()
        self.teacher = folder / "teachers" / "teacher.safetensors"
        self.leftovers = self.next_driver()

    def next_driver(self) -> Leftovers:
        return Leftovers(self.optuna, self.teacher, NoMirror(), self.beside)

    def add(
        self,
        role: Role,
        number: int = 0,
        state: State = "complete",
        value: float | None = None,
        of: str = "",
        **fields: Any,
    ) -> None:
        """A job, and what it wrote."""
        folder = Job(role, number, of=of).folder(self.config)
        checkpoint = folder / "checkpoints" / "000000240"
        checkpoint.mkdir(parents=True)
        for path in (checkpoint / "state.pt", folder / "best.safetensors", folder / "epochs.jsonl"):
            path.write_text("…")
        known = {"role": role, "number": number, "state": state, "value": value, "of": of}
        row = TrialRow.model_validate(known | {"directory": str(folder)} | fields)
        self.results = self.results.with_row(row)

    def tested(self, role: Role, number: int, of: str) -> None:
        row = self.results.row(role, number, of)
        assert row is not None
        self.results = self.results.with_row(row.model_copy(update={"test_accuracy": 0.5}))

    def trial(self, number: int, value: float = 0.5, state: State = "complete") -> None:
        """A trial of which Optuna was told, too."""
        self.add("trial", number, state, value)
        told = value if state == "complete" else None
        self.optuna.add_trial(create_trial(state=_STATES[state], value=told))

    def left(self, role: Role, number: int = 0, of: str = "") -> set[str]:
        folder = Job(role, number, of=of).folder(self.config)
        assert (folder / "epochs.jsonl").exists()
        found = {path.name for path in folder.iterdir()} - {"epochs.jsonl"}
        return {name.removesuffix(".safetensors") for name in found}

    def left_by_trials(self) -> list[set[str]]:
        return [self.left("trial", row.number) for row in self.results.of("trial")]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_the_best_keep_their_weights_until_better_ones_come(study: Study) -> None:
    for number, value in enumerate((0.5, 0.9, 0.7, 0.8)):
        study.trial(number, value)
    study.trial(4, 0.99, "running")
    study.leftovers.clear(study.results)
    assert study.left_by_trials() == [NOTHING, WEIGHTS, WEIGHTS, WEIGHTS, WHOLE]
    study.trial(5, 0.95)
    study.leftovers.clear(study.results)
    assert study.left_by_trials() == [NOTHING, WEIGHTS, NOTHING, WEIGHTS, WHOLE, WEIGHTS]


def test_pruned_and_failed_trials_keep_nothing_whatever_they_had(study: Study) -> None:
    study.trial(0, 0.9, "pruned")
    study.trial(1, 0.9, "failed")
    study.trial(2, 0.1)
    study.leftovers.clear(study.results)
    assert study.left_by_trials() == [NOTHING, NOTHING, WEIGHTS]


def test_what_waits_keeps_its_checkpoints_and_a_screening_nothing(study: Study) -> None:
    study.add("trial", 0, "waiting", 0.9)
    study.optuna.add_trial(create_trial(state=TrialState.RUNNING))
    study.add("screening", 0)
    study.add("screening", 1, "running")
    study.leftovers.clear(study.results)
    assert study.left("trial", 0) == WHOLE
    assert [study.left("screening", number) for number in (0, 1)] == [NOTHING, WHOLE]


def test_a_trial_that_was_tested_keeps_its_weights(study: Study) -> None:
    study.trial(0, 0.1)
    study.results = study.results.with_row(
        study.results.rows[0].model_copy(update={"test_accuracy": 0.1})
    )
    for number in range(1, 4):
        study.trial(number, 0.9)
    study.leftovers.clear(study.results)
    assert study.left("trial", 0) == WEIGHTS


def test_a_trial_that_optuna_will_hand_out_again_keeps_everything(study: Study) -> None:
    for number in range(4):
        study.trial(number, 0.9)
    study.add("trial", 4, "complete", 0.1)
    study.optuna.add_trial(create_trial(state=TrialState.RUNNING))
    study.leftovers.clear(study.results)
    assert study.left("trial", 4) == WHOLE
    study.optuna.tell(4, 0.1)
    study.next_driver().clear(study.results)
    assert study.left("trial", 4) == NOTHING


def test_a_teacher_is_gone_on_with_until_its_weights_are_kept(study: Study) -> None:
    study.add("teacher", state="failed")
    study.add("baseline")
    study.leftovers.clear(study.results)
    assert (study.left("teacher"), study.left("baseline")) == (WHOLE, WEIGHTS)
    study.results = study.results.with_row(
        study.results.rows[0].model_copy(update={"state": "complete"})
    )
    study.leftovers.clear(study.results)
    assert study.left("teacher") == WHOLE
    study.teacher.parent.mkdir()
    study.teacher.touch()
    study.next_driver().clear(study.results)
    assert study.left("teacher") == WEIGHTS


def test_a_study_without_a_search_keeps_its_student(study: Study) -> None:
    study.add("trial", 0)
    Leftovers(None, None, NoMirror()).clear(study.results)
    assert study.left("trial", 0) == WEIGHTS


def test_of_a_baselines_search_the_best_alone_keeps_its_weights(study: Study) -> None:
    for number, value in enumerate((0.5, 0.9, 0.7)):
        study.add("baseline", number, value=value, of="none")
    study.trial(0, 0.1)
    told = [create_trial(state=TrialState.COMPLETE, value=0.5)] * 2
    study.beside["none"].add_trials(told)
    study.leftovers.clear(study.results)
    left = [study.left("baseline", number, "none") for number in range(3)]
    assert left == [NOTHING, WEIGHTS, WHOLE]  # Optuna will hand out the last again
    study.beside["none"].add_trial(told[0])
    study.next_driver().clear(study.results)
    assert study.left("baseline", 2, "none") == NOTHING
    assert study.left("trial", 0) == WEIGHTS


def test_replicates_keep_their_weights_until_they_are_tested_and_the_winners_for_good(
    study: Study,
) -> None:
    study.trial(0, 0.9)
    study.trial(1, 0.8)
    for of in ("trial 0", "trial 1"):
        for number in range(2):
            study.add("replicate", number, of=of)
        study.add("replicate", 2, "failed", of=of)
        study.add("replicate", 3, "running", of=of)
    study.leftovers.clear(study.results)
    for of in ("trial 0", "trial 1"):
        left = [study.left("replicate", number, of) for number in range(4)]
        assert left == [WEIGHTS, WEIGHTS, NOTHING, WHOLE]
        study.tested("replicate", 0, of)
    study.leftovers.clear(study.results)
    assert [study.left("replicate", n, "trial 0") for n in range(2)] == [WEIGHTS, WEIGHTS]
    assert [study.left("replicate", n, "trial 1") for n in range(2)] == [NOTHING, WEIGHTS]


@pytest.mark.parametrize("removals", range(4))
def test_an_interrupted_look_is_made_again(
    study: Study, removals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        study.trial(number, number / 10)
    left, real = iter(range(removals)), os.unlink

    def unlink(*args: object, **how: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(*args, **how)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            study.leftovers.clear(study.results)
    study.next_driver().clear(study.results)
    assert study.left_by_trials() == [NOTHING, NOTHING, WEIGHTS, WEIGHTS, WEIGHTS]


def test_while_optuna_is_away_everything_stays(study: Study) -> None:
    journal = study.config.folder / "optuna.journal"
    study.trial(0, state="pruned")
    journal.rename(journal.with_name("away"))
    with pytest.raises(AwayError):
        study.leftovers.clear(study.results)
    assert study.left("trial", 0) == WHOLE

    journal.with_name("away").rename(journal)
    time.sleep(0.3)  # it is not asked again at once
    study.leftovers.clear(study.results)
    assert study.left("trial", 0) == NOTHING


def test_what_cannot_be_removed_is_said_once_and_hinders_nobody(
    study: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = tasks.clear

    def clear(folder: Path, *, keep_best: bool) -> None:
        if folder.name == "0000":
            raise OSError("stale file handle")
        real(folder, keep_best=keep_best)

    for number in range(5):
        study.trial(number, number / 10)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(tasks, "clear", clear)
        study.leftovers.clear(study.results)
        study.trial(5, 0.0)
        study.leftovers.clear(study.results)
    (said,) = caplog.messages
    assert said == "trial 0 left files that could not be removed: stale file handle"
    assert (study.left("trial", 0), study.left("trial", 1)) == (WHOLE, NOTHING)
    study.next_driver().clear(study.results)
    assert study.left("trial", 0) == NOTHING
