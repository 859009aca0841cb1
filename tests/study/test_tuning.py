"""What Tune's events tell the recorder."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from study.jobs import Job
from study.retries import Retries
from study.tuning import ScoringError, TuneListener

TRIAL = Job("trial", 0, {"optim.lr": 0.1})


class Recorder:
    """Keeps the ends of trials that it is told of."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str | None]] = []
        self.told: list[Any] = []
        self.looks = 0

    def look_around(self) -> None:
        self.looks += 1

    def begins_again(self, job: Job, why: str, reason: str) -> None:
        assert job == TRIAL
        self.told.append((why, reason))

    def started(self, job: Job) -> None:
        assert job == TRIAL

    def ended(self, job: Job, state: str, error: str | None = None) -> None:
        assert job == TRIAL or job.role == "teacher"
        self.ends.append((state, error))

    def scored(self, job: Job, metrics: dict[str, float]) -> None:
        self.told.append(("scored", job.role, metrics))

    def tested(self, job: Job, metrics: dict[str, float]) -> None:
        self.told.append(("tested", job.role, metrics))


class Search:
    """Keeps what becomes of the jobs that failed."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begins_again(self, job: Job) -> None:
        self.told.append("again")

    def failed(self, job: Job) -> None:
        self.told.append("failed")


def listening(
    recorder: Recorder, search: Search | None = None, max_failures: int = 0
) -> TuneListener:
    retries = Retries(max_failures, 1, lambda: {"a node": True})
    return TuneListener(recorder, search or Search(), retries)  # type: ignore[arg-type]


def ended_as(result: dict[str, Any] | None, error: Path | None = None) -> tuple[str, str | None]:
    recorder = Recorder()
    listener = listening(recorder)
    trial: Any = SimpleNamespace(
        config={"job": TRIAL.to_dict()},
        error_file=None,
        pickled_error_file=None,
        last_result=result,
    )
    listener.on_trial_start(0, [], trial)
    if error is None:
        listener.on_trial_complete(0, [], trial)
    else:
        trial.error_file = str(error)
        listener.on_trial_error(0, [], trial)
    assert recorder.ends == []  # until the step's end
    listener.on_step_end(0, [])
    listener.on_step_end(1, [])
    (end,) = recorder.ends
    return end


def test_listener_tells_how_trials_ended() -> None:
    assert ended_as({"epoch": 3, "epochs": 3}) == ("complete", None)
    assert ended_as({"epoch": 2, "epochs": 3}) == ("pruned", None)
    for nothing in ({}, None, {"done": True}):
        assert ended_as(nothing) == ("failed", "it ended without a report")


def test_listener_tells_why_a_trial_failed(tmp_path: Path) -> None:
    text = "Failure # 1\n\x1b[36mray::train()\x1b[39m (pid=1)\n  File x\nValueError: too few\n\n"
    (tmp_path / "error.txt").write_text(text)
    plain = text.replace("\x1b[36m", "").replace("\x1b[39m", "")
    assert ended_as({"epoch": 1, "epochs": 3}, tmp_path / "error.txt") == ("failed", plain)


def test_a_failure_without_a_file_is_told_too() -> None:
    recorder = Recorder()
    listener = listening(recorder)
    trial: Any = SimpleNamespace(
        config={"job": TRIAL.to_dict()}, error_file=None, pickled_error_file=None
    )
    listener.on_trial_error(0, [], trial)
    listener.on_step_end(0, [])
    assert recorder.ends == [("failed", "unknown error")]


def test_a_trial_that_begins_again_has_not_ended(tmp_path: Path) -> None:
    (tmp_path / "error.txt").write_text("Failure # 1\nRuntimeError: CUDA error\n")
    (tmp_path / "error.pkl").write_bytes(pickle.dumps(RuntimeError("CUDA error")))
    trial: Any = SimpleNamespace(
        config={"job": TRIAL.to_dict()},
        error_file=str(tmp_path / "error.txt"),
        pickled_error_file=str(tmp_path / "error.pkl"),
    )
    recorder, search = Recorder(), Search()
    listener = listening(recorder, search, max_failures=1)
    listener.on_trial_error(0, [], trial)
    listener.on_step_end(0, [])
    assert (recorder.ends, search.told) == ([], ["again"])
    assert recorder.told == [("failure 1 of 1 that it may have", "RuntimeError: CUDA error")]
    listener.on_trial_error(1, [], trial)
    listener.on_step_end(1, [])
    assert [state for state, _ in recorder.ends] == ["failed"]
    assert search.told == ["again", "failed"]


SCORES = {"test/accuracy": 0.9}


@pytest.mark.parametrize(
    ("job", "told", "ends"),
    [
        (Job("trial", 0, TRIAL.sample, "test"), ("tested", "trial", SCORES), []),
        (Job("teacher", split="val"), ("scored", "teacher", SCORES), [("complete", None)]),
    ],
)
def test_scores_are_told_and_are_no_trials(job: Job, told: Any, ends: Any) -> None:
    recorder = Recorder()
    listener = listening(recorder)
    trial: Any = SimpleNamespace(config={"job": job.to_dict()}, last_result={})
    listener.on_trial_start(0, [], trial)
    listener.on_trial_result(0, [], trial, {"scores": SCORES, "value": 0.0})
    listener.on_trial_complete(0, [], trial)
    assert (recorder.told, recorder.ends) == ([], [])
    listener.on_step_end(0, [])
    listener.on_step_end(1, [])
    assert (recorder.told, recorder.ends) == ([told], ends)


def test_a_network_that_cannot_be_scored_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "error.txt").write_text("Failure # 1\nValueError: no such file\n")
    job = Job("baseline", split="test")
    trial: Any = SimpleNamespace(
        config={"job": job.to_dict()},
        error_file=str(tmp_path / "error.txt"),
        pickled_error_file=None,
    )
    listener = listening(Recorder())
    listener.on_trial_error(0, [], trial)
    with pytest.raises(ScoringError, match=r"the baseline on the test split failed: .* such file"):
        listener.on_step_end(0, [])


def test_listener_looks_around_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("study.tuning.time.monotonic", lambda: now)
    recorder = Recorder()
    listener = listening(recorder)
    for seconds in (0.1, 0.5, 0.5, 0.5, 0.6):  # at 0.1, 0.6, 1.1, 1.6, 2.2
        now += seconds
        listener.on_step_end(0, [])
    assert recorder.looks == 2


def test_tune_can_pickle_the_listener() -> None:
    assert vars(pickle.loads(pickle.dumps(listening(Recorder())))) == {}
