"""Studies on a cluster of two nodes, one of which may go."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

from study.config import StudyConfig, dump_config, without_search
from study.curves import read_curve
from study.ledger import LEDGER, load_results
from study.results import TrialRow
from tests.integration.jobs import submitting
from tests.integration.machines import TRIAL, WORKER, Machine, Machines, running_machines
from tests.trainable.trials import OF_THE_MACHINE

pytestmark = [pytest.mark.service, pytest.mark.slow, pytest.mark.timeout(900)]

TRIALS, EPOCHS = 3, 60
SEARCH: dict[str, Any] = {"optim.lr": {"loguniform": [0.01, 0.1]}}
LONG: dict[str, Any] = {"study": {"trials": TRIALS}, "train": {"epochs": EPOCHS}, "search": SEARCH}


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """A cluster whose head has a CPU."""
    with running_machines(head_cpus=1) as machines:
        yield machines


@pytest.fixture
def other(machines: Machines) -> Machine:
    """The cluster's other node, with a CPU."""
    return machines.joined[-1] if machines.joined else machines.join(cpus=1)


def submitted(config: StudyConfig, machines: Machines) -> subprocess.Popen[str]:
    path = Path(config.storage.path) / "study.yaml"
    path.write_text(dump_config(config))
    return submitting(path, "--address", machines.dashboard)


def wait(
    config: StudyConfig,
    process: subprocess.Popen[str],
    until: Callable[[tuple[TrialRow, ...]], bool],
) -> None:
    """Until the ledger's trials are so."""
    ledger, limit = config.folder / LEDGER, time.monotonic() + 400
    while time.monotonic() < limit and process.poll() is None:
        if ledger.exists() and until(load_results(ledger).of("trial")):
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"it did not come to that: {process.communicate()}")


def end(process: subprocess.Popen[str]) -> str:
    """What a submitted study printed, when it has ended as studies do."""
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (0, ""), stdout
    return stdout


def two_run(rows: tuple[TrialRow, ...]) -> bool:
    """Two trials at once, each past two epochs."""
    return sum(row.state == "running" and 2 <= row.epochs < EPOCHS for row in rows) == 2


def must_be_whole(left: Any) -> None:
    """Every trial is complete, told once, epoch by epoch, and nothing runs."""
    assert [trial.state for trial in left.optuna_trials] == [TrialState.COMPLETE] * TRIALS
    assert {row.state for row in left.results.rows} == {"complete"}
    assert {run.info.status for run in (left.parent, *left.children)} == {"FINISHED"}
    assert len(left.children) == TRIALS + 2  # the baseline and the teacher
    for row in left.results.of("trial"):
        steps = [step for step, _ in left.history(row.label)["val/accuracy"]]
        assert steps == list(range(1, EPOCHS + 1))


def goes_on(config: StudyConfig) -> list[tuple[str, str]]:
    """The trials that began again, and why."""
    log = (config.folder / "study.log").read_text()
    return re.findall(r"(trial \d+) goes on from its last checkpoint: (.+?) \(", log)


def trained_at(row: TrialRow) -> list[int]:
    """When the trial, as it goes on now, had trained each epoch: later than was told, if it did so twice."""
    folder = Path(row.directory) / "checkpoints"
    for _ in range(100):
        last = max(path for path in folder.iterdir() if path.name.isdecimal())
        with suppress(FileNotFoundError):  # there is a newer one
            records = torch.load(last / "state.pt", weights_only=True)["records"]
            return [record["timestamp_ms"] for record in records]
    raise AssertionError(f"no checkpoint in {folder}")


def when_it_has_gone_on(config: StudyConfig, process: subprocess.Popen[str]) -> TrialRow:
    """The first trial that began again, when it has told two epochs more."""
    log, found = config.folder / "study.log", list[TrialRow]()
    wait(config, process, lambda _: log.exists() and bool(goes_on(config)))
    (label, _), *_ = goes_on(config)
    (before,) = [
        row for row in load_results(config.folder / LEDGER).of("trial") if row.label == label
    ]

    def has_gone_on(rows: tuple[TrialRow, ...]) -> bool:
        found[:] = [row for row in rows if row.label == label and row.epochs >= before.epochs + 2]
        return bool(found)

    wait(config, process, has_gone_on)
    assert found[0].state == "running"
    return found[0]


def curves(left: Any, label: str) -> dict[str, Any]:
    return {k: v for k, v in left.history(label).items() if k not in OF_THE_MACHINE}


def test_trials_run_on_both_nodes_at_once(
    machines: Machines, other: Machine, tmp_path: Path, configure: Any, left_by: Any
) -> None:
    config = configure(tmp_path, **LONG)
    process = submitted(config, machines)
    wait(config, process, two_run)
    assert sorted(machines.nodes_with(TRIAL)) == sorted([machines.head, other.node_id])
    end(process)
    must_be_whole(left_by(config))


@pytest.mark.usefixtures("other")
def test_one_trial_has_its_two_workers_on_two_nodes(
    machines: Machines, tmp_path: Path, configure: Any, conduct: Any, left_by: Any
) -> None:
    """And ends with the numbers of two workers on one node."""
    changes = {"study": {"trials": 1}, "train": {"epochs": 4, "workers": 2}, "search": SEARCH}
    for folder in (tmp_path / "two", tmp_path / "one"):
        folder.mkdir()
    config = configure(tmp_path / "two", **changes)
    process = submitted(config, machines)
    wait(config, process, lambda rows: any(1 <= row.epochs < 4 for row in rows))
    assert len(set(machines.nodes_with(WORKER))) == 2
    end(process)
    ours, theirs = left_by(config), conduct(configure(tmp_path / "one", **changes))
    for label in ("trial 0", "baseline"):
        assert curves(ours, label) == curves(theirs, label)
        assert curves(ours, label)


@pytest.mark.chaos
def test_a_lost_node_costs_no_trial(
    machines: Machines, other: Machine, tmp_path: Path, configure: Any, left_by: Any
) -> None:
    """Though none may fail: what ran there goes on at the other node, where the others were."""
    config = configure(tmp_path, **LONG)
    assert config.study.max_failures == 0
    process = submitted(config, machines)
    wait(config, process, two_run)
    lost_at = machines.lose(other)
    row = when_it_has_gone_on(config, process)
    assert sum(time_ms < lost_at * 1000 for time_ms in trained_at(row)) >= 2
    told = end(process)
    must_be_whole(left_by(config))
    assert {label for label, _ in goes_on(config)} == {row.label}
    assert f"{row.label} goes on from its last checkpoint" in told


@pytest.mark.chaos
def test_with_notice_a_trial_leaves_after_its_epoch_and_loses_nothing(
    machines: Machines, other: Machine, tmp_path: Path, configure: Any, left_by: Any
) -> None:
    config = configure(tmp_path, **LONG)
    process = submitted(config, machines)
    wait(config, process, two_run)
    machines.ask_to_leave(other)
    row = when_it_has_gone_on(config, process)
    trained = trained_at(row)
    told = [record.timestamp_ms for record in read_curve(Path(row.directory))]
    end(process)
    shorter = min(len(trained), len(told))
    assert shorter >= row.epochs - 1
    assert trained[:shorter] == told[:shorter]  # no epoch was trained twice
    must_be_whole(left_by(config))
    assert goes_on(config) == [(row.label, "its node is gone, or about to go")]


@pytest.mark.chaos
def test_a_trial_that_lost_the_node_of_one_worker_goes_on_when_there_is_another(
    ray_cluster: str,
    machines: Machines,
    other: Machine,
    tmp_path: Path,
    configure: Any,
    left_by: Any,
) -> None:
    """Also where another cluster is on the machine, `ray_cluster`: what frees its place must ask the right one."""
    changes = {"study": {"trials": 1}, "train": {"epochs": EPOCHS, "workers": 2}}
    config = without_search(configure(tmp_path, **changes))
    process = submitted(config, machines)
    wait(config, process, lambda rows: any(2 <= row.epochs < EPOCHS for row in rows))
    lost_at = machines.lose(other)
    machines.join(cpus=1)
    row = when_it_has_gone_on(config, process)
    assert sum(time_ms < lost_at * 1000 for time_ms in trained_at(row)) >= 2
    end(process)
    left = left_by(config)
    assert [(row.state, row.epochs) for row in left.results.of("trial")] == [("complete", EPOCHS)]
    steps = [step for step, _ in left.history("trial 0")["val/accuracy"]]
    assert steps == list(range(1, EPOCHS + 1))
