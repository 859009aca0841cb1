"""What the recorder tells the ledger, MLflow and a person, and how it puts right what a dead driver left."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from study.config import StudyConfig, parse_config
from study.jobs import Job
from study.recorder import Recorder, TuneListener, trial_params
from study.results import LEDGER, StudyResults, TrialRow, load_results
from study.tracking import OpenRun
from trainable.records import EpochRecord

TRIAL = Job("trial", 0, {"optim.lr": 0.1})


class Store:
    """In place of MLflow: runs with their points and states; `broken` refuses the end of runs."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.best: list[tuple[float, int]] = []
        self.study: list[tuple[str, dict[str, float]]] = []
        self.broken = False

    def start_trial(self, parent: str, study: str, role: str, number: int, params: Any) -> str:
        run_id = f"run{len(self.runs)}"
        fresh = {"role": role, "number": number, "params": params, "points": [], "state": "running"}
        self.runs[run_id] = fresh
        return run_id

    def reopen_trial(self, run_id: str) -> None:
        self.runs[run_id]["state"] = "running"

    def log_epoch(self, run_id: str, record: EpochRecord) -> None:
        self.runs[run_id]["points"].append(record.epoch)

    def log_metrics(self, run_id: str, metrics: dict[str, float], step: int = 0) -> None:
        self.runs[run_id]["points"].append((step, metrics))

    def end_trial(self, run_id: str, state: str, error: str | None = None) -> None:
        if self.broken:
            raise ConnectionError("the store is gone")
        self.runs[run_id] |= {"state": state, "error": error}

    def end_study(self, run_id: str, state: str, metrics: dict[str, float]) -> None:
        self.study.append((state, metrics))

    def update_best(self, run_id: str, value: float, step: int) -> None:
        self.best.append((value, step))

    def leftover(self, parent: str) -> list[OpenRun]:
        return [
            OpenRun(run_id, run["role"], run["number"])
            for run_id, run in self.runs.items()
            if run["state"] == "running"
        ]


class Nobody:
    """A watcher who looks away."""

    def phase(self, text: str) -> None: ...
    def trial_started(self, row: TrialRow) -> None: ...
    def epoch(self, row: TrialRow, record: EpochRecord, epochs_total: int) -> None: ...
    def trial_ended(self, row: TrialRow) -> None: ...


def build(folder: Path, **changes: Any) -> StudyConfig:
    tree: dict[str, Any] = {
        "study": {"name": "s"},
        "storage": {"path": str(folder)},
        "data": {"source": "digits"},
        "student": {"model": "mini_resnet_10_4"},
        "distill": {"method": "none"},
        "search": {"optim.lr": {"loguniform": [1e-4, 1.0]}},
    }
    return parse_config(tree | changes)


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    config = build(tmp_path)
    config.folder.mkdir()
    return config


@pytest.fixture
def store() -> Store:
    return Store()


def driver(config: StudyConfig, store: Store) -> Recorder:
    """A driver's recorder, from the ledger if there is one."""
    path = config.folder / LEDGER
    results = (
        load_results(path)
        if path.exists()
        else StudyResults(
            name="s",
            trials_planned=3,
            started_at=0.0,
            tracking_uri="",
            experiment="",
            parent_run_id="parent",
        )
    )
    return Recorder(config, results, store, Nobody())  # type: ignore[arg-type]


def record(epoch: int, accuracy: float) -> EpochRecord:
    return EpochRecord(epoch, {"val/accuracy": accuracy}, 1000 + epoch)


def test_a_trial_from_start_to_end(config: StudyConfig, store: Store) -> None:
    recorder = driver(config, store)
    recorder.started(TRIAL)
    for epoch, accuracy in enumerate([0.4, 0.6, 0.5], start=1):
        recorder.reported(TRIAL, record(epoch, accuracy), 3)
    recorder.ended(TRIAL, "complete")
    (row,) = recorder.results.rows
    assert (row.state, row.epochs, row.value, row.best_epoch) == ("complete", 3, 0.6, 2)
    assert row.params == {"optim.lr": 0.1}
    assert store.runs["run0"]["points"] == [1, 2, 3]
    assert (store.runs["run0"]["state"], store.best) == ("complete", [(0.6, 1)])
    assert load_results(config.folder / LEDGER) == recorder.results


def test_epochs_that_are_reported_again_are_known(config: StudyConfig, store: Store) -> None:
    driver(config, store).started(TRIAL)
    first = driver(config, store)
    first.started(TRIAL)
    first.reported(TRIAL, record(1, 0.4), 3)
    again = driver(config, store)
    again.started(TRIAL)
    for epoch in (1, 2):
        again.reported(TRIAL, record(epoch, 0.4), 3)
    assert len(store.runs) == 1
    assert store.runs["run0"]["points"] == [1, 2]


def test_time_goes_on_from_driver_to_driver(
    config: StudyConfig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first = driver(config, store)
    clock[0] = 10.0
    assert first.seconds_searched() == 0.0
    first.started(TRIAL)
    clock[0] = 14.0
    first.reported(TRIAL, record(1, 0.4), 3)
    clock[0] = 5000.0  # a night later, in another process
    again = driver(config, store)
    assert again.seconds_searched() == 4.0
    again.started(TRIAL)
    clock[0] = 5003.0
    again.ended(TRIAL, "complete")
    assert again.seconds_searched() == 7.0
    (row,) = again.results.rows
    assert row.seconds == 7.0
    assert again.results.seconds == 17.0


def test_a_trial_that_optuna_knows_to_have_ended_ends_everywhere(
    config: StudyConfig, store: Store
) -> None:
    died = driver(config, store)
    died.started(TRIAL)
    died.reported(TRIAL, record(1, 0.4), 3)
    died.started(Job("trial", 1))
    died.started(Job("trial", 2))
    again = driver(config, store)
    again.take_up({0: "pruned", 1: "failed"})
    assert [row.state for row in again.results.rows] == ["pruned", "failed", "running"]
    assert [run["state"] for run in store.runs.values()] == ["pruned", "failed", "running"]
    assert again.results.rows[1].error is not None


def test_an_end_that_mlflow_did_not_hear_of_is_told_again(
    config: StudyConfig, store: Store
) -> None:
    died = driver(config, store)
    died.started(TRIAL)
    store.broken = True
    with pytest.raises(ConnectionError):
        died.ended(TRIAL, "complete")
    assert store.runs["run0"]["state"] == "running"
    store.broken = False
    driver(config, store).take_up({0: "complete"})
    assert store.runs["run0"]["state"] == "complete"


def test_a_run_that_is_not_in_the_ledger_yet_is_taken_up(config: StudyConfig, store: Store) -> None:
    store.start_trial("parent", "s", "trial", 0, {})
    recorder = driver(config, store)
    recorder.take_up({})
    recorder.started(TRIAL)
    recorder.started(Job("trial", 1))
    assert [row.run_id for row in recorder.results.rows] == ["run0", "run1"]
    assert len(store.runs) == 2


def test_winners_figures_close_the_study(config: StudyConfig, store: Store) -> None:
    recorder = driver(config, store)
    recorder.started(TRIAL)
    recorder.reported(TRIAL, record(1, 0.4), 1)
    recorder.ended(TRIAL, "complete")
    recorder.tested(TRIAL, {"test/accuracy": 0.3})
    recorder.finished()
    assert store.study == [("complete", {"best/test_accuracy": 0.3})]
    assert store.runs["run0"]["points"][-1] == (1, {"test/accuracy": 0.3})
    assert load_results(config.folder / LEDGER).finished


def test_error_rates_are_those_of_the_student_that_is_kept(
    config: StudyConfig, store: Store
) -> None:
    recorder = driver(config, store)
    recorder.started(TRIAL)
    for epoch, (accuracy, eer) in enumerate([(0.4, 0.3), (0.6, 0.2), (0.5, 0.1)], start=1):
        metrics = {"val/accuracy": accuracy, "val/eer": eer}
        recorder.reported(TRIAL, EpochRecord(epoch, metrics, 1000 + epoch), 3)
    recorder.ended(TRIAL, "complete")
    recorder.tested(TRIAL, {"test/accuracy": 0.55, "test/eer": 0.25})
    (row,) = recorder.results.rows
    assert (row.best_epoch, row.val_eer, row.test_accuracy, row.test_eer) == (2, 0.2, 0.55, 0.25)
    assert store.runs["run0"]["points"][-1] == (3, {"test/accuracy": 0.55, "test/eer": 0.25})
    assert load_results(config.folder / LEDGER) == recorder.results


def test_without_validation_the_last_epoch_is_kept(config: StudyConfig, store: Store) -> None:
    recorder = driver(config, store)
    recorder.started(TRIAL)
    for epoch, eer in enumerate([0.1, 0.3], start=1):
        recorder.reported(TRIAL, EpochRecord(epoch, {"val/eer": eer}, 1000 + epoch), 2)
    (row,) = recorder.results.rows
    assert (row.value, row.best_epoch, row.val_eer) == (None, None, 0.3)


def test_a_given_teacher_is_scored_as_far_as_there_are_pictures(
    tmp_path: Path, store: Store
) -> None:
    teacher = {"model": "mini_resnet_18_4", "checkpoint": "/weights.pt"}
    config = build(tmp_path, teacher=teacher, distill={"method": "kd", "alpha": 0.5})
    config.folder.mkdir()
    recorder = driver(config, store)
    recorder.started(Job("teacher"))
    recorder.scored(Job("teacher"), {"val/eer": 0.2})
    (row,) = recorder.results.rows
    assert (row.value, row.val_eer) == (None, 0.2)
    recorder.scored(Job("teacher"), {"val/accuracy": 0.9, "val/eer": 0.2})
    (row,) = recorder.results.rows
    assert (row.value, row.val_eer) == (0.9, 0.2)
    points = store.runs["run0"]["points"]
    assert points == [(0, {"val/eer": 0.2}), (0, {"val/accuracy": 0.9, "val/eer": 0.2})]


def test_params_of_a_given_teacher_say_where_it_is_from(tmp_path: Path) -> None:
    teacher = {"model": "mini_resnet_18_4", "checkpoint": "/weights.pt"}
    config = build(tmp_path, teacher=teacher, distill={"method": "kd", "alpha": 0.5})
    params = trial_params(config, Job("teacher"))
    assert params["teacher.checkpoint"] == "/weights.pt"
    assert params["data.source"] == "digits"
    assert not [path for path in params if path.startswith(("optim.", "distill.", "train."))]


def tune_trial(**fields: Any) -> Any:
    return SimpleNamespace(config={"job": TRIAL.to_dict()}, error_file=None, **fields)


def ended_as(
    config: StudyConfig, store: Store, result: dict[str, Any] | None, error: Path | None = None
) -> TrialRow:
    recorder = driver(config, store)
    listener, trial = TuneListener(recorder), tune_trial(last_result=result)
    listener.on_trial_start(0, [], trial)
    if error is None:
        listener.on_trial_complete(0, [], trial)
    else:
        trial.error_file = str(error)
        listener.on_trial_error(0, [], trial)
    assert recorder.results.rows[0].state == "running"  # until the step's end
    listener.on_step_end(0, [])
    listener.on_step_end(1, [])
    return recorder.results.rows[0]


def test_listener_tells_how_trials_ended(config: StudyConfig, store: Store) -> None:
    assert ended_as(config, store, {"epoch": 3, "epochs": 3}).state == "complete"
    assert ended_as(config, store, {"epoch": 2, "epochs": 3}).state == "pruned"
    for nothing in ({}, None, {"done": True}):
        row = ended_as(config, store, nothing)
        assert (row.state, row.error) == ("failed", "it ended without a report")


def test_listener_tells_why_a_trial_failed(
    config: StudyConfig, store: Store, tmp_path: Path
) -> None:
    text = "Failure # 1\n\x1b[36mray::train()\x1b[39m (pid=1)\n  File x\nValueError: too few\n\n"
    (tmp_path / "error.txt").write_text(text)
    row = ended_as(config, store, {"epoch": 1, "epochs": 3}, tmp_path / "error.txt")
    assert (row.state, row.error) == ("failed", "ValueError: too few")
    assert store.runs["run0"]["error"] == text.replace("\x1b[36m", "").replace("\x1b[39m", "")


def test_tune_can_pickle_the_listener(config: StudyConfig, store: Store) -> None:
    assert vars(pickle.loads(pickle.dumps(TuneListener(driver(config, store))))) == {}
