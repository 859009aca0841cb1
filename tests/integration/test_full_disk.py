"""Studies whose storage is full, not mounted or gone: they end with one message, and go on as if nothing had been."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from study.config import StudyConfig
from study.curves import read_curve
from study.ledger import load_results
from study.optuna_study import open_study
from tests.integration.driving import start
from tests.integration.small_disk import SmallDisk, small_disk
from tests.integration.test_mlflow_away import build, must_be_there_once

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]

EPOCHS = 8
AGAIN = "run the same command again: it goes on\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 64) as disk:
        yield disk


def epochs_in(folder: Path) -> int:
    ledger = folder / "results.json"
    return sum(row.epochs for row in load_results(ledger).of("trial")) if ledger.exists() else 0


def run_until(folder: Path, driver: subprocess.Popen[str], epochs: int) -> None:
    until = time.monotonic() + 300
    while epochs_in(folder) < epochs:
        assert time.monotonic() < until
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)


def must_end_in_words(driver: subprocess.Popen[str], folder: Path) -> str:
    """One message, with the folder, and no traceback."""
    stdout, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 1, (stdout, stderr)
    line = stderr.removesuffix("\n")
    assert "\n" not in line, stderr
    assert line.startswith(str(folder)), stderr
    assert "must take the study's files (" in line
    assert stderr.endswith(AGAIN)
    return line


def must_be_whole(config: StudyConfig) -> None:
    """Ledger, curves, MLflow and Optuna tell the same, each thing once."""
    results = must_be_there_once(config, MlflowClient(f"sqlite:///{config.storage.path}/mlflow.db"))
    assert [row.state for row in results.of("trial")] == ["complete"] * 4
    trials = open_study(config).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    for trial, row in zip(trials, results.of("trial"), strict=True):
        curve = {r.epoch: r.metrics["val/accuracy"] for r in read_curve(Path(row.directory))}
        assert list(curve) == list(range(1, EPOCHS + 1))
        assert trial.intermediate_values == curve


Breaking = tuple[Callable[[SmallDisk], None], Callable[[SmallDisk], None], str]
FULL: Breaking = (SmallDisk.fill, SmallDisk.make_room, "No space left on device")
AWAY: Breaking = (SmallDisk.take_away, SmallDisk.bring_back, "No such file or directory")


@pytest.mark.parametrize("breaking", [FULL, AWAY], ids=["no room", "not mounted"])
def test_a_disk_that_cannot_be_written(disk: SmallDisk, configure: Any, breaking: Breaking) -> None:
    break_it, mend_it, reason = breaking
    config = build(configure, disk.folder / "runs", train={"epochs": EPOCHS})
    inside = disk.root / "runs" / config.study.name
    driver = disk.start(config)
    for epochs in (2, 12):
        run_until(inside, driver, epochs)
        break_it(disk)
        line = must_end_in_words(driver, disk.folder / "runs")
        assert reason in line or "inline_container" in line
        mend_it(disk)
        assert epochs_in(inside) >= epochs
        driver = disk.start(config)
    stdout, stderr = driver.communicate(timeout=400)
    assert (driver.returncode, stderr) == (0, ""), stdout
    shutil.copytree(
        disk.root, disk.folder, dirs_exist_ok=True
    )  # below the mount, which we do not see
    must_be_whole(config)


def test_a_folder_that_is_gone_for_a_while(tmp_path: Path, configure: Any) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    config = build(configure, runs, train={"epochs": EPOCHS})
    driver = start(config)
    run_until(config.folder, driver, 2)
    runs.rename(tmp_path / "away")
    assert "No such file" in must_end_in_words(driver, runs)
    if runs.exists():  # what Ray has made meanwhile
        assert not list(runs.glob("*/*.json*"))
        runs.rename(tmp_path / "of no use")
    (tmp_path / "away").rename(runs)
    driver = start(config)
    stdout, stderr = driver.communicate(timeout=400)
    assert (driver.returncode, stderr) == (0, ""), stdout
    must_be_whole(config)
