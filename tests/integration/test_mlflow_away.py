"""Studies whose MLflow server, or whose driver, goes away: every point of every epoch is there once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from study.config import StudyConfig
from study.curves import read_curve
from study.ledger import find_results, load_results
from study.results import StudyResults
from study.spool import SPOOL, unsent
from tests.integration.driving import start
from tests.study.mlflow_server import MlflowServer, running_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def finish(config: StudyConfig) -> str:
    """Run it to its end; what it printed."""
    driver = start(config)
    stdout, stderr = driver.communicate(timeout=400)
    assert (driver.returncode, stderr) == (0, ""), stdout
    return stdout


def epochs_told(config: StudyConfig, trial: int) -> int:
    ledger = config.folder / "results.json"
    if not ledger.exists():
        return 0
    rows = [row for row in load_results(ledger).of("trial") if row.number == trial]
    return rows[0].epochs if rows else 0


def wait_for_progress(config: StudyConfig, driver: subprocess.Popen[str], before: int) -> None:
    """Until the driver has heard of two more epochs."""
    until = time.monotonic() + 240
    while all_epochs_told(config) < before + 2:
        assert time.monotonic() < until
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)


def all_epochs_told(config: StudyConfig) -> int:
    ledger = config.folder / "results.json"
    return sum(row.epochs for row in load_results(ledger).rows) if ledger.exists() else 0


def wait_for_epoch(config: StudyConfig, driver: subprocess.Popen[str], trial: int) -> None:
    """Until a trial has reported its second epoch."""
    until = time.monotonic() + 240
    while epochs_told(config, trial) < 2:
        assert time.monotonic() < until
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)


def must_be_there_once(config: StudyConfig, client: MlflowClient) -> StudyResults:
    """The runs are those of the ledger, and their points those of the curves, each once."""
    results = find_results(Path(config.storage.path), config.study.name)
    assert results.finished
    runs = client.search_runs([str(results.experiment_id)], max_results=1000)
    assert {run.info.run_id for run in runs} == set(results.run_ids.values())
    assert len(runs) == len(results.rows) + 1
    for row in results.rows:
        assert row.run_id is not None
        curve = [
            (name, record.epoch, record.timestamp_ms, value)
            for record in read_curve(Path(row.directory))
            for name, value in record.metrics.items()
        ]
        assert sorted(curve) == points_of(client, row.run_id), row.label
        run = client.get_run(row.run_id)
        assert row.findings is not None
        health = ", ".join(finding.name for finding in row.findings) or "healthy"
        assert (run.data.tags["kd.state"], run.data.tags["kd.health"]) == (row.state, health)
        tested = client.get_metric_history(row.run_id, "test/accuracy")
        assert [point.value for point in tested] == [
            value for value in [row.test_accuracy] if value is not None
        ]
    told = client.get_metric_history(results.parent_run_id, "best/val_accuracy")
    assert [point.step for point in told] == list(range(1, config.study.trials + 1))
    return results


def points_of(client: MlflowClient, run_id: str) -> list[tuple[str, int, int, float]]:
    """Every point of a run that belongs to an epoch."""
    return sorted(
        (name, point.step, point.timestamp, point.value)
        for name in client.get_run(run_id).data.metrics
        if not name.startswith(("best/", "test/"))
        for point in client.get_metric_history(run_id, name)
    )


def build(configure: Any, path: Path, **changes: Any) -> StudyConfig:
    return configure(
        path,
        study={"trials": 4, "concurrency": 2},
        teacher={"train": {"epochs": 2, "batch_size": 64}},
        distill={"method": "kd", "alpha": 0.5},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}},
        **changes,
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    with running_server(tmp_path) as server:
        yield server


@pytest.mark.service
def test_a_server_that_is_away_for_a_minute(
    server: MlflowServer, tmp_path: Path, configure: Any
) -> None:
    config = build(
        configure, tmp_path, train={"epochs": 8}, tracking={"uri": server.uri, "experiment": "e"}
    )
    driver = start(config)
    wait_for_epoch(config, driver, 0)
    server.stop()
    gone = time.monotonic()
    told = [epochs_told(config, trial) for trial in range(4)]
    time.sleep(60)
    assert driver.poll() is not None or [epochs_told(config, t) for t in range(4)] > told
    server.start()
    assert time.monotonic() - gone >= 60
    stdout, stderr = driver.communicate(timeout=400)
    assert (driver.returncode, stderr) == (0, ""), stdout
    if "could not be sent" in stdout:
        finish(config)
    assert unsent(config.folder / SPOOL) == 0
    must_be_there_once(config, MlflowClient(server.uri))


@pytest.mark.service
def test_a_server_that_stays_away_gets_the_rest_when_the_study_is_run_again(
    server: MlflowServer, tmp_path: Path, configure: Any
) -> None:
    config = build(
        configure, tmp_path, train={"epochs": 4}, tracking={"uri": server.uri, "experiment": "e"}
    )
    driver = start(config)
    wait_for_epoch(config, driver, 0)
    server.stop()
    stdout, stderr = driver.communicate(timeout=400)
    assert (driver.returncode, stderr) == (0, ""), stdout
    assert "waiting up to 60 s for MLflow" in stdout
    (line,) = [text for text in stdout.splitlines() if "could not be sent to MLflow" in text]
    assert str(config.folder / SPOOL) in line
    assert f"`kd-study resume tiny --storage {config.storage.path}` sends them" in line
    owed = unsent(config.folder / SPOOL)
    assert line.startswith(f"{owed} entries ")

    still_away = finish(config)
    assert "MLflow has not been told all of this study" in still_away
    assert "4 of 4 trials ended" in still_away
    assert unsent(config.folder / SPOOL) == owed

    server.start()
    sent = finish(config)
    assert "could not be sent" not in sent
    assert "4 of 4 trials ended" in sent
    assert unsent(config.folder / SPOOL) == 0
    must_be_there_once(config, MlflowClient(server.uri))


@pytest.mark.chaos
def test_a_driver_that_is_killed_at_any_moment(tmp_path: Path, configure: Any) -> None:
    config = build(configure, tmp_path, train={"epochs": 8})
    draw = random.Random(11)
    for _ in range(6):
        before = all_epochs_told(config)
        driver = start(config)
        wait_for_progress(config, driver, before)
        time.sleep(draw.uniform(0, 1.0))
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
    finish(config)
    results = must_be_there_once(config, MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"))
    assert [row.state for row in results.of("trial")] == ["complete"] * 4
