"""Studies whose trials and runs are kept by PostgreSQL, of which the driver or the server dies in the middle."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from study.config import StudyConfig
from study.curves import read_curve
from study.optuna_study import open_study
from study.results import StudyResults
from tests.integration.driving import start
from tests.integration.test_mlflow_away import (
    build,
    epochs_told,
    must_be_there_once,
    wait_for_epoch,
)
from tests.study.mlflow_server import MlflowServer, running_server
from tests.study.postgres import Postgres

pytestmark = [
    pytest.mark.slow,
    pytest.mark.service,
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    # psycopg warns of connections that nobody closes, as Optuna's and MLflow's stores do not.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass(frozen=True)
class Databases:
    """A PostgreSQL server with a database for Optuna and one behind an MLflow server."""

    server: Postgres
    optuna: str
    mlflow: str
    tracking: MlflowServer

    def build(self, configure: Any, path: Path) -> StudyConfig:
        config = build(
            configure,
            path,
            train={"epochs": 8},
            tracking={"uri": self.tracking.uri, "experiment": "e"},
        )
        storage = config.storage.model_copy(update={"optuna": self.optuna})
        return config.model_copy(update={"storage": storage})


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[Databases]:
    server = Postgres()
    try:
        server.start()
        optuna, mlflow = map(server.make_database, ("optuna", "mlflow"))
        with running_server(tmp_path, mlflow) as tracking:
            yield Databases(server, optuna, mlflow, tracking)
            gc.collect()  # here, where psycopg's warnings are not heard
    finally:
        server.stop()


def must_agree(config: StudyConfig, databases: Databases) -> None:
    """Both databases hold what the ledger and the curves do, each thing once."""
    results = must_be_there_once(config, MlflowClient(databases.mlflow))
    assert [row.state for row in results.of("trial")] == ["complete"] * config.study.trials
    must_be_in_optuna(config, results)


def must_be_in_optuna(config: StudyConfig, results: StudyResults) -> None:
    trials = open_study(config).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * config.study.trials
    for trial, row in zip(trials, results.of("trial"), strict=True):
        curve = {
            record.epoch: record.metrics["val/accuracy"]
            for record in read_curve(Path(row.directory))
        }
        assert list(curve) == list(range(1, config.train.epochs + 1))
        assert trial.intermediate_values == curve
        assert (trial.number, trial.value) == (row.number, row.value)
        assert trial.params == row.params


def test_a_study_in_postgres_whose_driver_is_killed(
    databases: Databases, tmp_path: Path, configure: Any
) -> None:
    config = databases.build(configure, tmp_path)
    driver = start(config)
    wait_for_epoch(config, driver, 1)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    driver = start(config)
    stdout, stderr = driver.communicate(timeout=600)
    assert (driver.returncode, stderr) == (0, ""), stdout
    must_agree(config, databases)


def test_a_study_whose_database_server_is_away(
    databases: Databases, tmp_path: Path, configure: Any
) -> None:
    config = databases.build(configure, tmp_path)
    driver = start(config)
    wait_for_epoch(config, driver, 0)
    databases.server.crash()
    told = [epochs_told(config, trial) for trial in range(2)]
    time.sleep(30)
    assert driver.poll() is None, driver.communicate()
    assert [epochs_told(config, trial) for trial in range(2)] > told  # trials run on
    assert epochs_told(config, 3) == 0  # and no new one begins
    databases.server.start_again()
    stdout, stderr = driver.communicate(timeout=600)
    assert (driver.returncode, stderr) == (0, ""), stdout
    assert "Optuna's storage is away (" in stdout
    assert "Optuna's storage is back after " in stdout
    must_agree(config, databases)
