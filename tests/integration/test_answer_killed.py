"""A driver that is killed among the trials of baselines, and again among replicates."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.ledger import load_results
from study.results import StudyResults, TrialRow
from tests.integration.conftest import history_of
from tests.integration.driving import start
from tests.trainable.trials import OF_THE_MACHINE

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

EPOCHS = 8


def build(configure: Any, path: Path) -> Any:
    return configure(
        path,
        study={
            "trials": 2,
            "concurrency": 1,
            "baselines": {"none": 2},
            "replicates": {"finalists": 1, "seeds": 2},
        },
        train={"epochs": EPOCHS},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}},
    )


def kill_when(
    config: Any, driver: subprocess.Popen[str], is_so: Callable[[TrialRow], bool]
) -> StudyResults:
    """Kill the driver when a row of the ledger is so; the ledger as it was."""
    ledger = config.folder / "results.json"
    until = time.monotonic() + 300
    while time.monotonic() < until and driver.poll() is None:
        if ledger.exists() and any(map(is_so, (found := load_results(ledger)).rows)):
            driver.kill()
            driver.communicate(timeout=60)
            return found
        time.sleep(0.02)
    driver.kill()
    raise AssertionError(f"it did not come to that: {driver.communicate()}")


def numbers(left: Any) -> dict[str, Any]:
    """Every point of every metric by run, but those of the machine."""
    return {
        row.label: {
            name: points
            for name, points in history_of(left.client, row.run_id).items()
            if name not in OF_THE_MACHINE
        }
        for row in left.results.rows
    }


def test_it_goes_on_and_ends_with_the_numbers_that_it_would_have_had(
    tmp_path_factory: pytest.TempPathFactory, configure: Any, conduct: Any, left_by: Any
) -> None:
    calm = conduct(build(configure, tmp_path_factory.mktemp("calm")))
    config = build(configure, tmp_path_factory.mktemp("killed"))
    kill_when(config, start(config), lambda row: row.of == "none" and 2 <= row.epochs < EPOCHS)
    before = kill_when(
        config,
        start(config),
        lambda row: row.role == "replicate" and row.number == 1 and 2 <= row.epochs < EPOCHS,
    )
    driver = start(config)
    stdout, stderr = driver.communicate(timeout=300)
    assert (driver.returncode, stderr) == (0, ""), stdout
    left = left_by(config)
    assert numbers(left) == numbers(calm)
    assert "trained again" in stdout
    assert {row.state for row in left.results.rows} == {"complete"}
    known = {row.label: row.run_id for row in before.rows}
    assert known.items() <= {row.label: row.run_id for row in left.results.rows}.items()
