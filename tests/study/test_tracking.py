"""Entries sent to a real SQLite store and a real server; both must show the same runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from study.entries import (
    Entry,
    File,
    Logged,
    Params,
    Points,
    Status,
    Tags,
    Text,
    Untagging,
    together,
)
from study.results import StudyResults, TrialRow
from study.store import Store
from study.telling import (
    epoch_ended,
    study_begins,
    study_opening,
    trial_begins,
    trial_ended,
    trial_goes_on,
)
from study.tracking import VALUES_A_CALL, Tracker
from trainable.records import EpochRecord

CONFIG = {"study": {"name": "first", "trials": 8}, "data": {"classes": ("cat", "dog")}}
TRACEBACK = (
    'Traceback (most recent call last):\n  File "loop.py", line 3\nValueError: no pictures\n'
)


@pytest.fixture
def tracker(store: Store) -> Tracker:
    return Tracker(store)


def send(tracker: Tracker, run_id: str, entries: list[Entry]) -> None:
    """As the writer does."""
    while entries:
        batch = together(entries, VALUES_A_CALL)
        assert tracker.send(run_id, batch) == []
        entries = entries[len(batch) :]


def open_study(tracker: Tracker, study_id: str = "0") -> str:
    opening = study_opening("first", study_id, "*hi*", 1_700_000_000_000)
    run_id = tracker.open_run(opening, may_be_there=False)
    send(tracker, run_id, study_begins(CONFIG, "a: 1\n"))
    return run_id


def trial(number: int, **fields: Any) -> TrialRow:
    row = {"role": "trial", "number": number, "directory": "/d"}
    return TrialRow.model_validate(row | fields)


def open_trial(
    tracker: Tracker,
    number: int = 0,
    params: dict[str, Any] | None = None,
    *,
    parent: str = "0" * 32,
    may_be_there: bool = False,
) -> str:
    results = StudyResults(
        name="first",
        trials_planned=4,
        started_at=0.0,
        tracking_uri="",
        experiment="",
        parent_run_id=parent,
    )
    opening, told = trial_begins(results, trial(number), params or {}, 1_700_000_000_000)
    run_id = tracker.open_run(opening, may_be_there=may_be_there)  # type: ignore[arg-type]
    send(tracker, run_id, [told])
    return run_id


def read_artifact(client: MlflowClient, run_id: str, name: str, folder: Path) -> str:
    return Path(client.download_artifacts(run_id, name, str(folder))).read_text()


def test_study_run_carries_config_tags_and_note(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = open_study(tracker)
    run: Run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("first", "RUNNING")
    assert run.info.start_time == 1_700_000_000_000
    assert run.data.params == {
        "study.name": "first",
        "study.trials": "8",
        "data.classes": "[cat, dog]",
    }
    assert {"kd.study": "first", "kd.state": "running"}.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.note.content"] == "*hi*"
    assert read_artifact(client, run_id, "config.yaml", tmp_path) == "a: 1\n"


def test_trial_is_a_nested_run_with_flat_params(tracker: Tracker, client: MlflowClient) -> None:
    parent = open_study(tracker)
    params = {"optim.lr": 0.05, "optim.nesterov": True, "distill.k": 5}
    run = client.get_run(open_trial(tracker, 3, params, parent=parent))
    assert run.info.run_name == "trial 3"
    assert run.data.params == {"optim.lr": "0.05", "optim.nesterov": "True", "distill.k": "5"}
    tags = {name: run.data.tags.get(name) for name in ("kd.study", "kd.trial", "kd.role")}
    assert tags == {"kd.study": "first", "kd.trial": "3", "kd.role": "trial"}
    assert run.data.tags["kd.state"] == "running"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert "kd.health" not in run.data.tags


def test_a_run_that_was_made_already_is_found_again(tracker: Tracker) -> None:
    parent = open_study(tracker)
    made = open_trial(tracker, 1, parent=parent)
    others = [open_trial(tracker, 2, parent=parent), open_trial(tracker, 1, parent="f" * 32)]
    assert open_trial(tracker, 1, parent=parent, may_be_there=True) == made
    assert made not in others
    fresh = open_trial(tracker, 3, parent=parent, may_be_there=True)
    assert fresh not in [made, *others]
    opening = study_opening("first", "0", "", 1)
    assert tracker.open_run(opening, may_be_there=True) == parent
    namesake = study_opening("first", "1", "", 1)
    assert tracker.open_run(namesake, may_be_there=True) != parent


def test_more_params_than_a_call_takes(tracker: Tracker, client: MlflowClient) -> None:
    run_id = open_trial(tracker, params={f"many.p{i}": i for i in range(205)})
    logged = client.get_run(run_id).data.params
    assert len(logged) == 205
    assert logged["many.p204"] == "204"


def test_epoch_keeps_its_step_and_time_and_a_replay_adds_nothing(
    tracker: Tracker, client: MlflowClient
) -> None:
    run_id = open_trial(tracker)
    records = [
        EpochRecord(epoch, {"val/accuracy": 0.5, "grad/norm.layer1.0": 3.0}, 1_700_000_000_123)
        for epoch in range(1, 4)
    ]
    told = [entry for record in records for entry in epoch_ended(trial(0), record)]
    send(tracker, run_id, told[:2])
    send(tracker, run_id, told)
    for name in records[0].metrics:
        points = client.get_metric_history(run_id, name)
        expected = [(r.epoch, r.metrics[name], r.timestamp_ms) for r in records]
        assert [(p.step, p.value, p.timestamp) for p in points] == expected


def test_everything_can_be_sent_twice(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = open_trial(tracker, params={"optim.lr": 1})
    (tmp_path / "statistics.parquet").write_text("numbers")
    ended = trial(0, state="failed", findings=())
    told = [
        Params(run="trial 0", params={"optim.lr": "1"}),
        *epoch_ended(trial(0), EpochRecord(1, {"val/accuracy": 0.5}, 1_700_000_000_123)),
        *trial_ended(ended, TRACEBACK, tmp_path / "statistics.parquet", 1_700_000_009_000),
    ]
    for _ in range(2):
        send(tracker, run_id, told)
        run = client.get_run(run_id)
        assert (run.info.status, run.info.end_time) == ("FAILED", 1_700_000_009_000)
        assert run.data.tags["kd.state"] == "failed"
        assert run.data.tags["kd.error"] == "ValueError: no pictures"
        assert run.data.tags["kd.health"] == "healthy"
        assert read_artifact(client, run_id, "error.txt", tmp_path) == TRACEBACK
        assert read_artifact(client, run_id, "statistics/statistics.parquet", tmp_path) == "numbers"
        assert len(client.get_metric_history(run_id, "val/accuracy")) == 1
    for _ in range(2):
        send(tracker, run_id, trial_goes_on(trial(0), 1_700_000_010_000))
        run = client.get_run(run_id)
        assert (run.info.status, run.data.tags["kd.state"]) == ("RUNNING", "running")
        assert not {"kd.error", "kd.health"} & set(run.data.tags)


def test_what_is_refused_is_dropped_alone(tracker: Tracker, client: MlflowClient) -> None:
    run_id = open_trial(tracker, params={"optim.lr": 1})
    good = {f"m{i}": float(i) for i in range(40)}
    points = Points(run="trial 0", metrics={**good, "bad\nname": 1.0}, step=1, time_ms=5)
    changed = Params(run="trial 0", params={"optim.lr": "2", "optim.momentum": "0.9"})
    refused = tracker.send(run_id, [points, changed, Tags(run="trial 0", tags={"kd.health": "x"})])
    assert [(one.values, one.what) for one in refused] == [(1, "bad\nname"), (1, "optim.lr")]
    assert "Changing param values" in refused[1].reason
    run = client.get_run(run_id)
    assert run.data.metrics == good
    assert run.data.params == {"optim.lr": "1", "optim.momentum": "0.9"}
    assert run.data.tags["kd.health"] == "x"


def test_a_deleted_run_refuses_everything(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    deleted, gone = open_trial(tracker), "f" * 32
    client.delete_run(deleted)
    assert tracker.is_writable(open_trial(tracker, 1))
    points = Points(run="trial 0", metrics={f"m{i}": 1.0 for i in range(300)}, step=1, time_ms=5)
    for run_id in (deleted, gone):
        assert not tracker.is_writable(run_id)
        (refusal,) = tracker.send(run_id, [points])
        assert refusal.values == 300
        (refusal,) = tracker.send(run_id, [Status(run="trial 0", status="FINISHED", time_ms=5)])
        assert refusal.what == "status"
    (refusal,) = tracker.send(gone, [Untagging(run="trial 0", names=("kd.error",))])
    assert refusal.what == "untagging"


def test_a_file_that_is_gone_is_refused(tracker: Tracker, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    (refusal,) = tracker.send(open_trial(tracker), [File(run="t", path=str(path), folder="f")])
    assert f"{path} is gone" in refusal.reason


def test_what_goes_together_is_one_kind_of_call_and_no_more_than_it_takes() -> None:
    def points(values: int) -> Points:
        return Points(run="t", metrics={f"m{i}": 1.0 for i in range(values)}, step=1, time_ms=1)

    tags, params = Tags(run="t", tags={"a": "b"}), Params(run="t", params={"a": "b"})
    text = Text(run="t", name="n", text="")
    assert together([params, points(2), tags, text, tags], 4) == [params, points(2), tags]
    assert together([params, points(2), tags], 3) == [params, points(2)]
    assert together([points(5), points(1)], 4) == [points(5)]
    assert together([text, text], 4) == [text]
    assert not isinstance(text, Logged)
