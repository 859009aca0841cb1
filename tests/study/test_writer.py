"""The writer's thread against a real store that fails in every way a store can."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import study.writer
from study.entries import Entry, File, Line, Opening, Params, Points, Status, Tags, Text
from study.spool import Spool, unsent
from study.store import Store, open_store
from study.tracking import VALUES_A_CALL, Tracker
from study.writer import Writer
from tests.study.mlflow_server import MlflowServer, running_server

METRICS = 20
Point = tuple[str, int, int, float]


class Driver:
    """Opens a spool and a writer on a store again and again, as drivers do one after the other."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder / "spool", store
        self.number = 0

    def __enter__(self) -> Driver:
        self.spool = Spool(self.folder)
        self.writer = Writer(self.spool, Tracker(self.store)).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.__exit__(*error)
        self.spool.__exit__(*error)

    def add(self, *entries: Entry) -> None:
        self.number += 1
        self.writer.add(Line(number=self.number, entries=entries))

    def open(self, *runs: str) -> None:
        for run in runs:
            tags = {"kd.trial": run, "kd.study_id": self.spool.study_id}
            opening = Opening(run=run, name=run, tags=tags, found_by=tags, time_ms=5)
            self.add(opening, Params(run=run, params={"optim.lr": run}))

    def runs_there(self) -> list[str]:
        wanted = f"tags.`kd.study_id` = '{self.spool.study_id}'"
        runs = self.store.client.search_runs([self.store.experiment_id], wanted)
        return sorted(run.info.run_name for run in runs)

    def points_there(self, run: str) -> list[Point]:
        return points_of(self.store.client, self.spool.runs[run])


def points_of(client: MlflowClient, run_id: str) -> list[Point]:
    """Every point of every metric of a run."""
    names = client.get_run(run_id).data.metrics
    return sorted(
        (name, p.step, p.timestamp, p.value)
        for name in names
        for p in client.get_metric_history(run_id, name)
    )


def epoch(run: str, step: int, metrics: int = METRICS) -> Points:
    values = {f"train/m{i}": step + i / 100 for i in range(metrics)}
    return Points(run=run, metrics=values, step=step, time_ms=1_700_000_000_000 + step)


def points_in(entries: list[Points]) -> list[Point]:
    return sorted((n, e.step, e.time_ms, v) for e in entries for n, v in e.metrics.items())


@pytest.fixture
def driver(tmp_path: Path, embedded_store: Store) -> Driver:
    return Driver(tmp_path, embedded_store)


@pytest.fixture
def calls(embedded_store: Store, monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(embedded_store.client, monkeypatch)


class Calls:
    """Counts the writing calls of a client, and lets a test make them fail."""

    def __init__(self, client: MlflowClient, patch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.metrics: list[int] = []
        self.before: Callable[[str], None] = lambda name: None
        self.after: Callable[[str], None] = lambda name: None
        for name in ("create_run", "log_batch", "update_run", "set_terminated", "log_text"):
            patch.setattr(client, name, self._watched(name, getattr(client, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            self.before(name)
            result = call(*arguments, **named)
            self.made.append(name)
            self.metrics.append(len(named.get("metrics", ())))
            self.after(name)
            return result

        return watched


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a hundredth."""
    for name in ("_FIRST_WAIT_S", "_LONGEST_WAIT_S", "_SHORT_WAIT_S"):
        monkeypatch.setattr(study.writer, name, getattr(study.writer, name) / 100)


def away(name: str) -> None:
    raise MlflowException("API request failed with exception Connection refused")


def test_entries_arrive_in_order_and_once(driver: Driver) -> None:
    with driver:
        told = [epoch("trial 0", step) for step in range(1, 6)]
        driver.open("trial 0")
        for entry in told:
            driver.add(entry)
            time.sleep(0.01)
        driver.add(
            Tags(run="trial 0", tags={"kd.state": "complete"}),
            Text(run="trial 0", name="a.txt", text="a"),
            Status(run="trial 0", status="FINISHED", time_ms=9),
        )
        assert driver.writer.drain(30).unsent == 0
        run = driver.store.client.get_run(driver.spool.runs["trial 0"])
        assert (run.info.status, run.info.end_time) == ("FINISHED", 9)
        assert run.data.tags["kd.state"] == "complete"
        assert driver.points_there("trial 0") == points_in(told)
        assert (driver.folder / "lines.jsonl").read_bytes() == b""


def test_a_backlog_is_sent_in_full_batches(driver: Driver, calls: Calls) -> None:
    """Eight runs that went on together while the store was away: 100 epochs of each."""
    runs = [f"trial {number}" for number in range(8)]
    with driver:
        driver.open(*runs)
        driver.writer.drain(30)
    calls.made.clear()
    calls.metrics.clear()
    told = {run: [epoch(run, step) for step in range(1, 101)] for run in runs}
    with driver:
        calls.before = away
        for step in range(100):
            driver.add(*(told[run][step] for run in runs))
        calls.before = lambda name: None
        assert driver.writer.drain(30).unsent == 0
        for run in runs:
            assert driver.points_there(run) == points_in(told[run])
    assert set(calls.made) == {"log_batch"}
    assert sum(calls.metrics) == 8 * 100 * METRICS
    full = [size for size in calls.metrics if size == VALUES_A_CALL]
    assert len(full) == 16
    assert len(calls.made) == 16


def test_the_driver_does_not_wait_for_the_store(driver: Driver, calls: Calls) -> None:
    answer = threading.Event()
    calls.before = lambda name: answer.wait(30) and None
    with driver:
        started = time.monotonic()
        driver.open("trial 0")
        for step in range(1, 101):
            driver.add(epoch("trial 0", step))
        assert time.monotonic() - started < 2
        assert calls.made == []
        answer.set()
        assert driver.writer.drain(30).unsent == 0
    assert len(calls.made) < 10


@pytest.mark.usefixtures("impatient")
def test_a_store_that_was_away_loses_and_repeats_nothing(driver: Driver, calls: Calls) -> None:
    """Calls fail before they did anything, and after they had done all."""
    failures = iter(range(10**9))

    def now_and_then(name: str) -> None:
        if next(failures) % 3:
            away(name)

    calls.before = calls.after = now_and_then
    with driver:
        driver.open("trial 0", "trial 1")
        told = {
            run: [epoch(run, step, 3) for step in range(1, 11)] for run in ("trial 0", "trial 1")
        }
        for step in range(10):
            for entries in told.values():
                driver.add(entries[step])
                time.sleep(0.005)
        assert driver.writer.drain(60).unsent == 0
        assert driver.runs_there() == ["trial 0", "trial 1"]
        for run, entries in told.items():
            assert driver.points_there(run) == points_in(entries)
    assert next(failures) > 20


def test_what_is_not_sent_in_time_is_counted_and_sent_by_the_next_driver(
    driver: Driver, calls: Calls
) -> None:
    told = [epoch("trial 0", step) for step in range(1, 11)]
    with driver:
        driver.open("trial 0")
        calls.before = away
        for entry in told[:5]:
            driver.add(entry)
        started = time.monotonic()
        remains = driver.writer.drain(0.5)
        assert 0.5 <= time.monotonic() - started < 2
        assert remains.unsent >= 5
    assert unsent(driver.folder) == remains.unsent
    assert not [t for t in threading.enumerate() if t.name == "mlflow writer"]
    calls.before = lambda name: None
    with driver:
        for entry in told[5:]:
            driver.add(entry)
        assert driver.writer.drain(30).unsent == 0
        assert driver.points_there("trial 0") == points_in(told)


def test_a_run_that_a_dead_driver_made_is_found_again(driver: Driver, calls: Calls) -> None:
    """It died when the store had the run, and before it had the run's id."""

    def die(name: str) -> None:
        if name == "create_run":
            driver.writer._over.set()
            away(name)

    with driver:
        calls.after = die
        driver.open("trial 0")
        driver.writer._thread.join(10)
        assert driver.spool.runs == {}
    calls.after = lambda name: None
    with driver:
        assert driver.writer.drain(30).unsent == 0
        assert driver.runs_there() == ["trial 0"]
        run = driver.store.client.get_run(driver.spool.runs["trial 0"])
        assert run.data.params == {"optim.lr": "trial 0"}


def test_what_the_store_refuses_blocks_nothing(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "study")
    with driver:
        driver.open("trial 0", "trial 1")
        while len(driver.spool.runs) < 2:
            time.sleep(0.01)
        driver.store.client.delete_run(driver.spool.runs["trial 0"])
        driver.add(epoch("trial 0", 1))
        bad = Points(run="trial 1", metrics={"bad\nname": 1.0, "good": 2.0}, step=1, time_ms=5)
        driver.add(bad)
        driver.add(epoch("never opened", 1))
        driver.add(File(run="trial 1", path="/nowhere/file", folder="f"))
        driver.add(epoch("trial 1", 2))
        remains = driver.writer.drain(30)
        assert (remains.unsent, remains.refused) == (0, METRICS + 3)
        there = driver.points_there("trial 1")
        assert there == sorted([*points_in([epoch("trial 1", 2)]), ("good", 1, 5, 2.0)])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert sum("trial 0" in text for text in said) == 1
    assert any("/nowhere/file is gone" in text for text in said)
    with driver:
        assert driver.writer.drain(30).refused == METRICS + 3


@pytest.mark.usefixtures("impatient")
def test_what_fails_again_and_again_while_the_store_answers_is_given_up_alone(
    driver: Driver, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    """Artifacts that cannot be written, say."""

    def broken(name: str) -> None:
        if name == "log_text":
            raise PermissionError("the folder of artifacts is not ours")

    calls.before = broken
    with driver:
        driver.open("trial 0")
        driver.add(Text(run="trial 0", name="a.txt", text="a"), epoch("trial 0", 1))
        driver.add(epoch("trial 0", 2))
        remains = driver.writer.drain(30)
        assert (remains.unsent, remains.refused) == (0, 1)
        assert driver.points_there("trial 0") == points_in([epoch("trial 0", s) for s in (1, 2)])
    assert "the folder of artifacts is not ours" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_a_full_disk_of_artifacts_is_waited_for(driver: Driver, calls: Calls) -> None:
    left = iter(range(20))

    def full(name: str) -> None:
        if name == "log_text" and next(left, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")

    calls.before = full
    with driver:
        driver.open("trial 0")
        driver.add(Text(run="trial 0", name="a.txt", text="a"), epoch("trial 0", 1))
        remains = driver.writer.drain(60)
        assert (remains.unsent, remains.refused) == (0, 0)
    assert next(left, None) is None


@pytest.mark.usefixtures("impatient")
def test_a_store_that_says_to_come_back_later_is_believed(driver: Driver, calls: Calls) -> None:
    left = iter(range(40))

    def busy(name: str) -> None:
        if next(left, None) is not None:
            error = MlflowException("database is locked")
            error.error_code = "TEMPORARILY_UNAVAILABLE"
            raise error

    calls.before = busy
    with driver:
        driver.open("trial 0")
        driver.add(epoch("trial 0", 1))
        remains = driver.writer.drain(60)
        assert (remains.unsent, remains.refused) == (0, 0)
        assert driver.points_there("trial 0") == points_in([epoch("trial 0", 1)])
    assert next(left, None) is None


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[MlflowServer]:
    with running_server(tmp_path) as server:
        yield server


@pytest.mark.service
def test_a_server_that_is_killed_and_comes_back_has_everything_once(
    own_server: MlflowServer, tmp_path: Path
) -> None:
    driver = Driver(tmp_path, open_store(own_server.uri, "e", None))
    runs = ("trial 0", "trial 1")
    told = {run: [epoch(run, step) for step in range(1, 201)] for run in runs}
    away = threading.Thread(target=lambda: (own_server.stop(), time.sleep(8), own_server.start()))
    with driver:
        driver.open(*runs)
        for step in range(200):
            if step == 50:
                away.start()
            for entries in told.values():
                driver.add(entries[step])
            time.sleep(0.01)
        remains = driver.writer.drain(60)
        away.join()
        assert (remains.unsent, remains.refused) == (0, 0)
        assert driver.runs_there() == list(runs)
        for run, entries in told.items():
            assert driver.points_there(run) == points_in(entries)
