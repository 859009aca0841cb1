"""A study that is interrupted, terminated or killed in mid-search, and run again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

from study.driver import StudyInterruptedError
from study.ledger import load_results
from study.results import StudyResults
from tests.integration.driving import start
from tests.trainable.trials import OF_THE_MACHINE

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

TRIALS, EPOCHS = 3, 8
NOISE = re.compile(r"ray::|\(pid=|Tune|WARNING|INFO|Warning|deprecated|\bray\b.*(started|address)")


def build(configure: Any, path: Path) -> Any:
    return configure(
        path,
        study={"trials": TRIALS, "concurrency": 1},
        train={"epochs": EPOCHS},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}, "data.batch_size": {"choice": [16, 32]}},
    )


def wait_for(config: Any, driver: subprocess.Popen[str]) -> StudyResults:
    """The ledger when the second trial has reported its second epoch."""
    ledger = config.folder / "results.json"
    until = time.monotonic() + 240
    while time.monotonic() < until and driver.poll() is None:
        if ledger.exists():
            results = load_results(ledger)
            if any(row.number == 1 and row.epochs >= 2 for row in results.of("trial")):
                return results
        time.sleep(0.02)
    driver.kill()
    raise AssertionError(f"the second trial did not begin: {driver.communicate()}")


def press_ctrl_c(driver: subprocess.Popen[str]) -> None:
    os.killpg(driver.pid, signal.SIGINT)  # a terminal sends it to the whole group


def terminate(driver: subprocess.Popen[str]) -> None:
    driver.send_signal(signal.SIGTERM)


def kill(driver: subprocess.Popen[str]) -> None:
    driver.kill()


def newest_state(trial: Path) -> dict[str, Any]:
    """Of a trial's checkpoints."""
    last = max(trial.glob("checkpoints/[0-9]*"))
    return torch.load(last / "state.pt", weights_only=True)


def last_state(trial: Path, driver: subprocess.Popen[str]) -> dict[str, Any]:
    """The newest that is seen while the driver runs: a trial that is over keeps no checkpoint."""
    state = newest_state(trial)
    while driver.poll() is None:
        with suppress(FileNotFoundError, ValueError):  # just removed, or none is left
            state = max(state, newest_state(trial), key=lambda seen: len(seen["records"]))
        time.sleep(0.02)
    return state


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, configure: Any, conduct: Any) -> Any:
    """The same study, left alone."""
    return conduct(build(configure, tmp_path_factory.mktemp("calm")))


@pytest.mark.parametrize("stop", [press_ctrl_c, terminate, kill])
def test_interrupted_study_goes_on_where_it_was(
    stop: Callable[[subprocess.Popen[str]], None],
    tmp_path: Path,
    configure: Any,
    left_by: Any,
    calm: Any,
) -> None:
    config = build(configure, tmp_path)
    driver = start(config)
    before = wait_for(config, driver)
    stopped_ms = time.time() * 1000
    asked = time.monotonic()
    stop(driver)
    stdout, stderr = driver.communicate(timeout=60)
    assert stderr == ""
    if stop is kill:
        assert driver.returncode == -signal.SIGKILL
    else:
        assert driver.returncode == 130, stdout
        assert time.monotonic() - asked < 30
        assert "run the same command again to go on" in stdout
        interrupted = left_by(config)
        assert interrupted.parent.data.tags["kd.state"] == "interrupted"
        states = [trial.state for trial in interrupted.optuna_trials]
        assert states == [TrialState.COMPLETE, TrialState.RUNNING]

    trial = config.folder / "trials" / "0001"
    told = len(newest_state(trial)["records"])
    again = start(config)
    state = last_state(trial, again)
    stdout, stderr = again.communicate(timeout=300)
    assert (again.returncode, stderr) == (0, ""), stdout
    assert f"{TRIALS} of {TRIALS} trials ended" in stdout
    assert not NOISE.search(stdout), stdout
    assert "trial 0 complete: " not in stdout  # the leaderboard names it without the colon

    left = left_by(config)
    assert [trial.state for trial in left.optuna_trials] == [TrialState.COMPLETE] * TRIALS
    assert left.parent.data.tags["kd.state"] == "complete"
    assert {run.data.tags["kd.state"] for run in left.children} == {"complete"}
    assert len(left.children) == TRIALS + 2
    rows = {row.label: row for row in left.results.rows}
    assert rows["trial 0"].run_id == next(r.run_id for r in before.rows if r.label == "trial 0")
    assert rows["trial 1"].params == next(r.params for r in before.rows if r.label == "trial 1")
    assert left.child("trial 0").info.end_time < stopped_ms
    assert len(state["records"]) > told
    assert state["records"][1]["timestamp_ms"] < stopped_ms  # it was not trained again

    for label in [f"trial {number}" for number in range(TRIALS)]:
        ours, theirs = left.history(label), calm.history(label)
        for history in (ours, theirs):
            for name in (*OF_THE_MACHINE, "test/accuracy"):
                history.pop(name, None)
        assert ours == theirs
        assert [step for step, _ in ours["val/accuracy"]] == list(range(1, EPOCHS + 1))
    assert left.results.winner.label == calm.results.winner.label
    assert left.results.winner.test_accuracy == calm.results.winner.test_accuracy


def test_a_signal_that_tune_takes_itself_does_not_end_the_study(
    tmp_path: Path, configure: Any, conduct: Any, make_spy: Any, left_by: Any
) -> None:
    """SIGUSR1 makes `Tuner.fit` return as if all were done; Slurm can send it before its time limit."""
    config = build(configure, tmp_path)
    spy = make_spy()

    def at_epoch(row: Any, record: Any) -> None:
        if (row.label, record.epoch) == ("trial 1", 2):
            os.kill(os.getpid(), signal.SIGUSR1)

    spy.at_epoch = at_epoch
    with pytest.raises(StudyInterruptedError):
        conduct(config, spy)
    states = [trial.state for trial in left_by(config).optuna_trials]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING]
    left = conduct(config)
    assert [row.state for row in left.results.of("trial")] == ["complete"] * TRIALS
    assert left.spy.phases[0].startswith("searching")
