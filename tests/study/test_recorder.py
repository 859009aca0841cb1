"""What the recorder tells the ledger, MLflow and a person, and how it puts right what a dead driver left."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest

from study.config import StudyConfig, dump_config, parse_config
from study.entries import Entry, File, Line, Opening, Points, Tags, Text, Untagging
from study.jobs import Job
from study.ledger import LEDGER, load_results
from study.mirror import NoMirror
from study.recorder import Recorder, trial_params
from study.results import StudyResults, TrialRow
from study.writer import Remains
from trainable import tasks
from trainable.records import EpochRecord, Finding

TRIAL = Job("trial", 0, {"optim.lr": 0.1})


class Outlet:
    """In place of the writer: keeps the lines, and gives every run an id as it is opened."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.ids: dict[str, str] = {}
        self.remains = Remains(0, 0)
        self.broken = False
        self.released = 0
        self.is_late = False
        """Whether it gives no ids yet."""

    @property
    def runs(self) -> dict[str, str]:
        return self.ids

    @property
    def last_number(self) -> int:
        return max((line.number for line in self.lines), default=0)

    def add(self, line: Line) -> None:
        if line.number <= self.last_number:
            return
        if self.broken:
            raise KeyboardInterrupt
        self.lines.append(line)
        opened = [entry.run for entry in line.entries if isinstance(entry, Opening)]
        if not self.is_late:
            self.ids |= {run: f"id of {run}" for run in opened}

    def release(self, number: int) -> None:
        self.released = number

    def drain(self, patience_s: float) -> Remains:
        return self.remains

    def entries(self, run: str) -> list[Entry]:
        return [entry for line in self.lines for entry in line.entries if entry.run == run]

    def points(self, run: str) -> list[tuple[int, dict[str, float]]]:
        return [(e.step, e.metrics) for e in self.entries(run) if isinstance(e, Points)]

    def steps(self, run: str, metric: str = "val/accuracy") -> list[int]:
        return [step for step, metrics in self.points(run) if metric in metrics]

    def tags(self, run: str) -> dict[str, str]:
        """As they are in the end."""
        tags: dict[str, str] = {}
        for entry in self.entries(run):
            match entry:
                case Opening() | Tags():
                    tags |= entry.tags
                case Untagging():
                    tags = {name: tags[name] for name in tags if name not in entry.names}
                case _:
                    pass
        return tags


class Nobody:
    """A watcher who looks away, and hears what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, text: str) -> None: ...
    def message(self, text: str) -> None:
        self.said.append(text)

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
def outlet() -> Outlet:
    return Outlet()


def driver(config: StudyConfig, outlet: Outlet, watcher: Nobody | None = None) -> Recorder:
    """A driver's recorder, from the ledger if there is one."""
    path = config.folder / LEDGER
    results = (
        load_results(path)
        if path.exists()
        else StudyResults(
            name="s",
            trials_planned=config.study.trials,
            objectives=config.study.objectives,
            started_at=0.0,
            tracking_uri="",
            experiment="",
            parent_run_id="parent",
        )
    )
    return Recorder(config, results, outlet, watcher or Nobody(), NoMirror())


def record(epoch: int, accuracy: float) -> EpochRecord:
    return EpochRecord(epoch, {"val/accuracy": accuracy}, 1000 + epoch)


def test_a_trial_from_start_to_end(config: StudyConfig, outlet: Outlet) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    for epoch, accuracy in enumerate([0.4, 0.6, 0.5], start=1):
        recorder.reported(TRIAL, record(epoch, accuracy), 3)
    recorder.ended(TRIAL, "complete")
    (row,) = recorder.results.rows
    assert (row.state, row.epochs, row.value, row.best_epoch) == ("complete", 3, 0.6, 2)
    assert (row.params, row.run_id) == ({"optim.lr": 0.1}, "id of trial 0")
    assert outlet.steps("trial 0") == [1, 2, 3]
    assert outlet.steps("trial 0", "best/val_accuracy") == [1, 2]
    assert outlet.tags("trial 0")["kd.state"] == "complete"
    ((step, told),) = outlet.points("study")
    assert (step, told["best/val_accuracy"], told["study/complete"]) == (1, 0.6, 1)
    assert load_results(config.folder / LEDGER) == recorder.results


BOUND = {"name": "s", "objectives": ["accuracy", "latency"]} | {
    "constraints": {"accuracy": 0.3, "latency": 2.0, "parameters": 100}
}


def costed(recorder: Recorder, job: Job, accuracy: float, latency: float) -> None:
    """A trial from its start to its end."""
    recorder.started(job)
    recorder.reported(job, record(1, 0.1), 2)
    costs = {"student/latency_ms": latency, "student/parameters": 50.0, "train/seconds": 3.0}
    last = record(2, accuracy)
    recorder.reported(job, EpochRecord(2, last.metrics | costs, last.timestamp_ms), 2)
    recorder.ended(job, "complete")


def test_what_a_trial_costs_and_breaks_is_in_the_ledger_and_in_mlflow(
    tmp_path: Path, outlet: Outlet
) -> None:
    config = build(tmp_path, study=BOUND)
    config.folder.mkdir()
    recorder = driver(config, outlet)
    for number, (accuracy, latency) in enumerate([(0.5, 1.0), (0.9, 3.0), (0.2, 1.0)]):
        costed(recorder, Job("trial", number), accuracy, latency)
    baseline = Job("baseline")
    recorder.started(baseline)
    recorder.reported(baseline, record(1, 0.1), 1)
    recorder.ended(baseline, "complete")
    first, second, third, compared = recorder.results.rows
    assert first.costs == {"latency": 1.0, "parameters": 50.0, "training_seconds": 3.0}
    assert [row.violates for row in (first, second, third)] == [(), ("latency",), ("accuracy",)]
    assert compared.violates == ()  # it is no trial
    assert recorder.results.winner == first
    assert outlet.points("study")[-1][1]["best/val_accuracy"] == 0.5
    assert "kd.violates" not in outlet.tags("trial 0")
    assert outlet.tags("trial 1")["kd.violates"] == "latency"


def test_a_trial_that_is_kept_back_is_told_once_as_stopped(tmp_path: Path, outlet: Outlet) -> None:
    config = build(tmp_path, study=BOUND)
    config.folder.mkdir()
    driver(config, outlet).kept_back(TRIAL, {"parameters": 150.0})
    again = driver(config, outlet)  # the first has died before Optuna was told
    again.take_up({})
    again.kept_back(TRIAL, {"parameters": 150.0})
    (row,) = again.results.rows
    assert (row.state, row.epochs, row.violates) == ("pruned", 0, ("parameters",))
    assert outlet.steps("trial 0", "student/parameters") == [0]
    tags = outlet.tags("trial 0")
    assert (tags["kd.state"], tags["kd.violates"]) == ("pruned", "parameters")


def test_a_trial_that_is_stopped_midway_breaks_nothing_yet(tmp_path: Path, outlet: Outlet) -> None:
    config = build(tmp_path, study=BOUND)
    config.folder.mkdir()
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    recorder.reported(TRIAL, record(1, 0.1), 2)
    recorder.ended(TRIAL, "pruned")
    assert recorder.results.rows[0].violates == ()


def test_the_front_is_tagged_in_the_end_and_anew_when_there_are_more_trials(
    tmp_path: Path, outlet: Outlet
) -> None:
    config = build(tmp_path, study={"name": "s", "objectives": ["accuracy", "latency"]})
    config.folder.mkdir()
    recorder = driver(config, outlet)
    costed(recorder, Job("trial", 0), 0.5, 1.0)
    costed(recorder, Job("trial", 1), 0.4, 1.5)
    recorder.finished(10, 10)
    assert [outlet.tags(f"trial {n}")["kd.front"] for n in (0, 1)] == ["true", "false"]
    costed(recorder, Job("trial", 2), 0.6, 0.5)
    recorder.finished(10, 10)
    assert [outlet.tags(f"trial {n}")["kd.front"] for n in range(3)] == ["false", "false", "true"]


def test_epochs_that_are_reported_again_are_known(config: StudyConfig, outlet: Outlet) -> None:
    driver(config, outlet).started(TRIAL)
    first = driver(config, outlet)
    first.started(TRIAL)
    first.reported(TRIAL, record(1, 0.4), 3)
    again = driver(config, outlet)
    again.started(TRIAL)
    for epoch in (1, 2):
        again.reported(TRIAL, record(epoch, 0.4), 3)
    assert len([e for e in outlet.entries("trial 0") if isinstance(e, Opening)]) == 1
    assert outlet.steps("trial 0") == [1, 2]


@pytest.mark.parametrize("dies_in", ["curve", "ledger", "spool"])
def test_a_driver_that_dies_while_it_tells_of_an_epoch(
    dies_in: str, config: StudyConfig, outlet: Outlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the curve, or after the ledger and before the spool, or when all is told."""
    died = driver(config, outlet)
    died.started(TRIAL)
    died.reported(TRIAL, record(1, 0.4), 3)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        if dies_in == "curve":
            patch.setattr(Recorder, "_take_in", interrupted)
        outlet.broken = dies_in == "ledger"
        died.reported(TRIAL, record(2, 0.5), 3)
    outlet.broken = False
    assert outlet.steps("trial 0") == ([1, 2] if dies_in == "spool" else [1])
    again = driver(config, outlet)
    again.take_up({})
    again.started(TRIAL)
    for epoch, accuracy in enumerate([0.4, 0.5, 0.6], start=1):
        again.reported(TRIAL, record(epoch, accuracy), 3)
    assert outlet.steps("trial 0") == [1, 2, 3]
    (row,) = again.results.rows
    assert (row.epochs, row.value) == (3, 0.6)


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_line_that_an_interruption_kept_from_the_spool_is_told_by_the_same_driver(
    config: StudyConfig, outlet: Outlet
) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    outlet.broken = True
    with pytest.raises(KeyboardInterrupt):
        recorder.reported(TRIAL, record(1, 0.4), 3)
    outlet.broken = False
    recorder.stopped("interrupted")
    assert outlet.steps("trial 0") == [1]
    assert outlet.tags("study")["kd.state"] == "interrupted"


def test_time_goes_on_from_driver_to_driver(
    config: StudyConfig, outlet: Outlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first = driver(config, outlet)
    clock[0] = 10.0
    assert first.seconds_searched() == 0.0
    first.started(TRIAL)
    clock[0] = 14.0
    first.reported(TRIAL, record(1, 0.4), 3)
    clock[0] = 5000.0  # a night later, in another process
    again = driver(config, outlet)
    assert again.seconds_searched() == 4.0
    again.started(TRIAL)
    clock[0] = 5003.0
    again.ended(TRIAL, "complete")
    assert again.seconds_searched() == 7.0
    (row,) = again.results.rows
    assert row.seconds == 7.0
    assert again.results.seconds == 17.0


def test_a_trial_that_waits_is_open_and_its_waiting_costs_nothing(
    config: StudyConfig, outlet: Outlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first = driver(config, outlet)
    first.started(TRIAL)
    clock[0] = 4.0
    first.reported(TRIAL, record(1, 0.4), 3)
    first.waits(TRIAL)
    (row,) = first.results.rows
    assert (row.state, row.seconds, row.has_ended) == ("waiting", 4.0, False)
    assert outlet.tags("trial 0")["kd.state"] == "waiting"
    clock[0] = 100.0
    first.started(TRIAL)
    assert outlet.tags("trial 0")["kd.state"] == "running"
    clock[0] = 102.0
    first.reported(TRIAL, record(2, 0.5), 3)
    first.waits(TRIAL)
    again = driver(config, outlet)
    again.take_up({})
    assert again.results.rows[0].state == "waiting"
    clock[0] = 200.0
    again.ended(TRIAL, "pruned")
    (row,) = again.results.rows
    assert (row.state, row.seconds, row.epochs) == ("pruned", 6.0, 2)


def test_what_optuna_knows_of_a_trial_that_waited_is_put_right(
    config: StudyConfig, outlet: Outlet
) -> None:
    first = driver(config, outlet)
    first.started(TRIAL)
    first.reported(TRIAL, record(1, 0.4), 3)
    first.waits(TRIAL)
    again = driver(config, outlet)
    again.take_up({0: "pruned"})
    assert again.results.rows[0].state == "pruned"


def test_a_trial_whose_screening_is_not_complete_ends_with_it(tmp_path: Path) -> None:
    config = build(tmp_path, study={"name": "s", "screening": {"subset": 0.5}})
    config.folder.mkdir()
    recorder = driver(config, Outlet())
    jobs = [Job("screening", number, {"optim.lr": 0.1}) for number in range(3)]
    for job in jobs:
        recorder.started(job)
        recorder.reported(job, record(1, 0.4), 3)
    recorder.ended(jobs[0], "complete")
    recorder.ended(jobs[1], "failed", "it broke")
    again = driver(config, Outlet())
    again.take_up({2: "pruned"})
    states = {row.label: (row.state, row.epochs, row.error) for row in again.results.rows}
    assert states == {
        "screening 0": ("complete", 1, None),
        "screening 1": ("failed", 1, "it broke"),
        "trial 1": ("failed", 0, "it broke"),
        "screening 2": ("pruned", 1, None),
        "trial 2": ("pruned", 0, None),
    }
    assert {row.findings for row in again.results.rows} == {None}


def test_a_trial_that_optuna_knows_to_have_ended_ends_everywhere(
    config: StudyConfig, outlet: Outlet
) -> None:
    died = driver(config, outlet)
    died.started(TRIAL)
    died.reported(TRIAL, record(1, 0.4), 3)
    died.started(Job("trial", 1, {"optim.lr": 0.2}))
    died.started(Job("trial", 2, {"optim.lr": 0.3}))
    again = driver(config, outlet)
    again.take_up({0: "pruned", 1: "failed"})
    states = ["pruned", "failed", "running"]
    assert [row.state for row in again.results.rows] == states
    assert [outlet.tags(f"trial {number}")["kd.state"] for number in range(3)] == states
    assert again.results.rows[1].error is not None


def test_an_end_that_mlflow_did_not_hear_of_is_told_again(
    config: StudyConfig, outlet: Outlet
) -> None:
    died = driver(config, outlet)
    died.started(TRIAL)
    outlet.broken = True
    with pytest.raises(KeyboardInterrupt):
        died.ended(TRIAL, "complete")
    assert outlet.tags("trial 0")["kd.state"] == "running"
    outlet.broken = False
    driver(config, outlet).take_up({0: "complete"})
    assert outlet.tags("trial 0")["kd.state"] == "complete"
    assert len(outlet.points("study")) == 1


def test_a_trial_that_is_taken_up_again_forgets_its_error(
    config: StudyConfig, outlet: Outlet
) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    recorder.ended(TRIAL, "failed", "ValueError: no pictures")
    assert outlet.tags("trial 0")["kd.error"] == "ValueError: no pictures"
    recorder.started(TRIAL)
    (row,) = recorder.results.rows
    assert (row.state, row.error, row.findings) == ("running", None, None)
    assert outlet.tags("trial 0")["kd.state"] == "running"
    assert "kd.error" not in outlet.tags("trial 0")


def test_winners_figures_close_the_study(config: StudyConfig, outlet: Outlet) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    recorder.reported(TRIAL, record(1, 0.4), 1)
    recorder.ended(TRIAL, "complete")
    recorder.tested(TRIAL, {"test/accuracy": 0.3})
    recorder.finished(50, 100)
    assert outlet.points("study")[-1] == (1, {"best/test_accuracy": 0.3})
    assert outlet.tags("study")["kd.state"] == "complete"
    assert outlet.points("trial 0")[-1] == (1, {"test/accuracy": 0.3})
    assert load_results(config.folder / LEDGER).finished


def test_replicates_figures_close_the_study(config: StudyConfig, outlet: Outlet) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    recorder.reported(TRIAL, record(1, 0.4), 1)
    recorder.ended(TRIAL, "complete")
    for number, accuracy in enumerate((0.25, 0.75)):
        replicate = TRIAL.replicate(number)
        recorder.started(replicate)
        recorder.reported(replicate, EpochRecord(1, {}, 1), 1)
        recorder.ended(replicate, "complete")
        recorder.tested(replicate, {"test/accuracy": accuracy})
    recorder.finished(50, 100)
    _, told = outlet.points("study")[-1]
    assert told["best/test_accuracy"] == 0.5
    assert told["best/test_accuracy_sd"] == pytest.approx(0.125**0.5)
    assert outlet.tags("trial 0 replicate 1") == {
        "mlflow.parentRunId": "parent",
        "kd.study": "s",
        "kd.role": "replicate",
        "kd.trial": "1",
        "kd.of": "trial 0",
        "kd.state": "complete",
        "kd.health": "healthy",
    }
    kept = load_results(config.folder / LEDGER)
    assert (kept.val_pictures, kept.test_pictures) == (50, 100)


def test_what_a_dead_driver_left_of_a_baselines_search_is_put_right(
    tmp_path: Path, outlet: Outlet
) -> None:
    config = build(tmp_path, study={"name": "s", "baselines": {"none": 2}})
    config.folder.mkdir()
    jobs = [Job("baseline", number, {"optim.lr": 0.1}, of="none") for number in range(2)]
    for job in (TRIAL, *jobs):
        driver(config, outlet).started(job)
    recorder = driver(config, outlet)
    recorder.take_up({}, {"none": {1: "complete"}})
    states = {row.label: row.state for row in recorder.results.rows}
    assert states == {
        "trial 0": "running",
        "baseline none 0": "running",
        "baseline none 1": "complete",
    }


def test_a_finished_study_that_is_to_have_more_trials(tmp_path: Path, outlet: Outlet) -> None:
    config = build(tmp_path, study={"name": "s", "trials": 1, "time_budget_s": 60.0})
    config.folder.mkdir()
    before = driver(config, outlet)
    before.take_up({})
    before.seconds_searched()
    before.started(TRIAL)
    before.ended(TRIAL, "complete")
    before.finished(50, 100)
    assert not [entry for entry in outlet.entries("study") if isinstance(entry, Text)]

    longer = build(tmp_path, study={"name": "s", "trials": 3, "time_budget_s": 60.0})
    recorder = driver(longer, outlet)
    recorder.take_up({0: "complete"})
    kept = load_results(config.folder / LEDGER)
    assert (kept.finished, kept.trials_planned, kept.findings) == (False, 3, ())
    assert kept.search_began is None  # the time budget counts anew
    assert [row.state for row in kept.rows] == ["complete"]
    assert outlet.tags("study")["kd.state"] == "running"
    assert "3 trial(s)" in outlet.tags("study")["mlflow.note.content"]
    (text,) = [entry for entry in outlet.entries("study") if isinstance(entry, Text)]
    assert text.text == dump_config(longer)

    recorder.seconds_searched()
    driver(longer, outlet).take_up({0: "complete"})  # after a death: it is known
    assert load_results(config.folder / LEDGER).search_began is not None
    assert len([entry for entry in outlet.entries("study") if isinstance(entry, Text)]) == 1


def test_a_ledger_that_is_gone_is_not_begun_anew(
    tmp_path: Path, config: StudyConfig, outlet: Outlet
) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    config.folder.rename(tmp_path / "away")
    config.folder.mkdir()
    for tell in (
        lambda: recorder.reported(TRIAL, record(1, 0.5), 2),
        lambda: recorder.ended(TRIAL, "complete"),
    ):
        with pytest.raises(FileNotFoundError):
            tell()
    assert list(config.folder.iterdir()) == []


def test_a_teacher_behind_its_student_is_said_of_the_study(tmp_path: Path, outlet: Outlet) -> None:
    teacher = {"model": "mini_resnet_18_4", "checkpoint": "/weights.pt"}
    config = build(tmp_path, teacher=teacher, distill={"method": "kd", "alpha": 0.5})
    config.folder.mkdir()
    recorder = driver(config, outlet)
    for job, accuracy in ((Job("teacher"), 0.5), (TRIAL, 0.9)):
        recorder.started(job)
        recorder.ended(job, "complete")
        recorder.tested(job, {"test/accuracy": accuracy})
    recorder.finished(500, 1000)
    (finding,) = load_results(config.folder / LEDGER).findings
    assert finding.name == "teacher_worse_than_student"
    assert "trial 0 90 %" in finding.evidence
    assert outlet.tags("study")["kd.health"] == finding.name


def test_a_study_whose_end_was_not_told_tells_it_when_it_is_run_again(
    config: StudyConfig, outlet: Outlet
) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    outlet.broken = True
    with pytest.raises(KeyboardInterrupt):
        recorder.finished(50, 100)
    outlet.broken = False
    again = driver(config, outlet)
    assert again.results.finished
    again.settle()
    assert outlet.tags("study")["kd.state"] == "failed"


def test_ids_that_come_late_are_in_the_ledger(config: StudyConfig, outlet: Outlet) -> None:
    recorder, outlet.is_late = driver(config, outlet), True
    recorder.started(TRIAL)
    recorder.ended(TRIAL, "complete")
    assert load_results(config.folder / LEDGER).rows[0].run_id is None
    outlet.ids["trial 0"] = "late"
    recorder.settle()
    results = load_results(config.folder / LEDGER)
    assert results.run_ids == {"study": "parent", "trial 0": "late"}


@pytest.mark.parametrize(
    ("remains", "words"),
    [
        (Remains(0, 0), None),
        (
            Remains(7, 0),
            r"^7 entries could not be sent .* kept in .*/s/spool; `kd-study resume s --st",
        ),
        (Remains(0, 2), r"^MLflow refused 2 values, which .*/s/study\.log names$"),
        (Remains(7, 2), r"^7 entries .*; MLflow refused 2 values"),
    ],
)
def test_what_mlflow_was_not_told_is_said_in_a_line(
    remains: Remains, words: str | None, config: StudyConfig, outlet: Outlet
) -> None:
    outlet.remains, watcher = remains, Nobody()
    driver(config, outlet, watcher).settle()
    if words is None:
        assert watcher.said == []
    else:
        (line,) = watcher.said
        assert re.search(words, line)


FINDING = Finding("dead_channels", "Channels are dead.", "9 of 10 (epoch 1)", "lower optim.lr")


@pytest.mark.parametrize(
    ("found", "health"), [((), "healthy"), ((FINDING,), "dead_channels"), (None, "unknown")]
)
def test_a_trial_is_diagnosed_when_it_ends(
    found: tuple[Finding, ...] | None,
    health: str,
    config: StudyConfig,
    outlet: Outlet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def diagnose(trial: Any, curve: Any) -> tuple[Finding, ...]:
        assert trial.optim.lr == 0.1
        assert [one.epoch for one in curve] == [1]
        if found is None:
            raise ZeroDivisionError("a bug")
        return found

    monkeypatch.setattr(tasks, "diagnose", diagnose)
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    recorder.reported(TRIAL, record(1, 0.4), 1)
    recorder.ended(TRIAL, "complete")
    (row,) = recorder.results.rows
    assert (row.state, row.findings) == ("complete", found)
    assert outlet.tags("trial 0")["kd.health"] == health
    assert ("a bug" in caplog.text) == (found is None)


def test_what_ended_before_its_first_epoch_is_not_diagnosed(
    config: StudyConfig, outlet: Outlet
) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    recorder.ended(TRIAL, "failed", "ValueError: no pictures")
    assert recorder.results.rows[0].findings is None
    assert outlet.tags("trial 0")["kd.health"] == "unknown"


def test_statistics_are_kept_where_there_are_any(config: StudyConfig, outlet: Outlet) -> None:
    recorder = driver(config, outlet)
    other = Job("trial", 1, {"optim.lr": 0.2})
    recorder.started(TRIAL)
    recorder.started(other)
    path = TRIAL.folder(config) / "statistics.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    recorder.ended(TRIAL, "complete")
    recorder.ended(other, "complete")
    files = [entry for line in outlet.lines for entry in line.entries if isinstance(entry, File)]
    assert files == [File(run="trial 0", path=str(path), folder="statistics")]


def test_error_rates_are_those_of_the_student_that_is_kept(
    config: StudyConfig, outlet: Outlet
) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    for epoch, (accuracy, eer) in enumerate([(0.4, 0.3), (0.6, 0.2), (0.5, 0.1)], start=1):
        metrics = {"val/accuracy": accuracy, "val/eer": eer}
        recorder.reported(TRIAL, EpochRecord(epoch, metrics, 1000 + epoch), 3)
    recorder.ended(TRIAL, "complete")
    recorder.tested(TRIAL, {"test/accuracy": 0.55, "test/eer": 0.25})
    (row,) = recorder.results.rows
    assert (row.best_epoch, row.val_eer, row.test_accuracy, row.test_eer) == (2, 0.2, 0.55, 0.25)
    assert outlet.points("trial 0")[-1] == (3, {"test/accuracy": 0.55, "test/eer": 0.25})
    assert load_results(config.folder / LEDGER) == recorder.results


def test_without_validation_the_last_epoch_is_kept(config: StudyConfig, outlet: Outlet) -> None:
    recorder = driver(config, outlet)
    recorder.started(TRIAL)
    for epoch, eer in enumerate([0.1, 0.3], start=1):
        recorder.reported(TRIAL, EpochRecord(epoch, {"val/eer": eer}, 1000 + epoch), 2)
    (row,) = recorder.results.rows
    assert (row.value, row.best_epoch, row.val_eer) == (None, None, 0.3)


def test_a_given_teacher_is_scored_as_far_as_there_are_pictures(
    tmp_path: Path, outlet: Outlet
) -> None:
    teacher = {"model": "mini_resnet_18_4", "checkpoint": "/weights.pt"}
    config = build(tmp_path, teacher=teacher, distill={"method": "kd", "alpha": 0.5})
    config.folder.mkdir()
    recorder = driver(config, outlet)
    recorder.started(Job("teacher"))
    recorder.scored(Job("teacher"), {"val/eer": 0.2})
    (row,) = recorder.results.rows
    assert (row.value, row.val_eer) == (None, 0.2)
    recorder.scored(Job("teacher"), {"val/accuracy": 0.9, "val/eer": 0.2})
    (row,) = recorder.results.rows
    assert (row.value, row.val_eer) == (0.9, 0.2)
    told = {"val/accuracy": 0.9, "val/eer": 0.2, "best/val_accuracy": 0.9}
    assert outlet.points("teacher") == [(0, {"val/eer": 0.2}), (0, told)]


def test_params_of_a_given_teacher_say_where_it_is_from(tmp_path: Path) -> None:
    teacher = {"model": "mini_resnet_18_4", "checkpoint": "/weights.pt"}
    config = build(tmp_path, teacher=teacher, distill={"method": "kd", "alpha": 0.5})
    params = trial_params(config, Job("teacher"))
    assert params["teacher.checkpoint"] == "/weights.pt"
    assert params["data.source"] == "digits"
    assert not [path for path in params if path.startswith(("optim.", "distill.", "train."))]


def test_a_trial_that_began_again_is_told_once_everywhere(
    config: StudyConfig, outlet: Outlet, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = Nobody()
    recorder = driver(config, outlet, watcher)
    recorder.started(TRIAL)
    recorder.look_around()
    assert watcher.said == []
    folder = TRIAL.folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "out_of_memory.txt").write_text("2026-11-26T10:00:00+00:00 rank 0: out of memory\n")
    for _ in range(3):
        recorder.look_around()
    said = "trial 0 ran out of memory beside others and goes on once it is alone on its GPU"
    assert watcher.said == [said]
    assert [record.getMessage() for record in caplog.records] == [
        f"{said}: 2026-11-26T10:00:00+00:00 rank 0: out of memory"
    ]
    (row,) = load_results(config.folder / LEDGER).of("trial")
    assert row.out_of_memory == ("2026-11-26T10:00:00+00:00 rank 0: out of memory",)
    assert row.state == "running"
    assert outlet.tags("trial 0")["kd.out_of_memory"] == row.out_of_memory[0]


def test_what_a_trial_left_shortly_before_its_end_is_told_with_it(
    config: StudyConfig, outlet: Outlet
) -> None:
    watcher = Nobody()
    recorder = driver(config, outlet, watcher)
    recorder.started(TRIAL)
    folder = TRIAL.folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "out_of_memory.txt").write_text("then rank 0: out of memory\n")
    recorder.ended(TRIAL, "failed", "rank 0: out of memory")
    assert len(watcher.said) == 1
    (row,) = load_results(config.folder / LEDGER).of("trial")
    assert (row.state, len(row.out_of_memory)) == ("failed", 1)
