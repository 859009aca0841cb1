"""A driver that is killed again and again, at any moment, while the store is slow: everything is there once."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from study.config import StudyConfig, parse_config
from study.curves import read_curve
from study.folder import connect, only_driver, open_results
from study.jobs import Job
from study.ledger import LEDGER, load_results
from study.mirror import NoMirror
from study.recorder import Recorder
from study.results import TrialRow
from study.spool import SPOOL, Spool, unsent
from study.tracking import Tracker
from study.writer import Writer
from trainable.records import EpochRecord

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]

TRIALS, EPOCHS, METRICS = 6, 60, 5
KILLS = 25


class Nobody:
    """A watcher who looks away."""

    def phase(self, text: str) -> None: ...
    def message(self, text: str) -> None: ...
    def trial_started(self, row: TrialRow) -> None: ...
    def epoch(self, row: TrialRow, record: EpochRecord, epochs_total: int) -> None: ...
    def trial_ended(self, row: TrialRow) -> None: ...


def config_in(folder: Path) -> StudyConfig:
    return parse_config(
        {
            "study": {"name": "s", "trials": TRIALS},
            "storage": {"path": str(folder)},
            "data": {"source": "digits"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "none"},
            "search": {"optim.lr": {"loguniform": [1e-4, 1.0]}},
        }
    )


def record_of(trial: int, epoch: int) -> EpochRecord:
    """As a trial reports it, and reports it again: from its checkpoint."""
    metrics = {f"train/m{i}": trial + epoch / 100 + i for i in range(METRICS)}
    metrics["val/accuracy"] = (trial * 7 + epoch * 13) % 50 / 50
    return EpochRecord(epoch, metrics, 1_700_000_000_000 + trial * EPOCHS + epoch)


def drive(folder: Path) -> None:
    """A driver's work on a study, without Ray: two trials at a time."""
    config = config_in(folder)
    store = connect(config)
    slowly = store.client.log_batch

    def log_batch(*arguments: Any, **named: Any) -> None:
        time.sleep(0.02)
        slowly(*arguments, **named)
        time.sleep(0.02)

    store.client.log_batch = log_batch  # type: ignore[method-assign]
    with only_driver(config.folder), Spool(config.folder / SPOOL) as spool:
        results = open_results(config, store, spool)
        with Writer(spool, Tracker(store)) as writer:
            recorder = Recorder(config, results, writer, Nobody(), NoMirror())
            recorder.take_up({})
            for first in range(0, TRIALS, 2):
                train(recorder, [Job("trial", n, {"optim.lr": 0.1}) for n in (first, first + 1)])
            winner = recorder.results.winner
            assert winner is not None
            if winner.test_accuracy is None:
                recorder.tested(Job.of_row(winner, config), {"test/accuracy": 0.5})
            recorder.finished(50, 100)
            recorder.settle()


def train(recorder: Recorder, jobs: list[Job]) -> None:
    rows = [recorder.row(job) for job in jobs]
    jobs = [j for j, row in zip(jobs, rows, strict=True) if row is None or row.state == "running"]
    for job in jobs:
        recorder.started(job)
    for epoch in range(1, EPOCHS + 1):
        for job in jobs:
            recorder.reported(job, record_of(job.number, epoch), EPOCHS)
        time.sleep(0.004)
    for job in jobs:
        recorder.ended(job, "complete")


def test_a_driver_killed_again_and_again(tmp_path: Path) -> None:
    mp.set_forkserver_preload(["study.recorder", "study.folder", "study.writer", "mlflow.tracking"])
    context, config, draw = mp.get_context("forkserver"), config_in(tmp_path), random.Random(5)
    ledger, left = config.folder / LEDGER, list[int]()
    for _ in range(KILLS):
        process = context.Process(target=drive, args=(tmp_path,))
        process.start()
        before = ledger.stat().st_mtime_ns if ledger.exists() else 0
        until = time.monotonic() + 60
        while process.is_alive() and not (ledger.exists() and ledger.stat().st_mtime_ns > before):
            assert time.monotonic() < until
            time.sleep(0.001)
        process.join(draw.uniform(0, 0.25))
        if not process.is_alive():
            break
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        left.append(unsent(config.folder / SPOOL))
    assert len(left) >= 15
    assert sum(entries > 0 for entries in left) >= 10, left
    process = context.Process(target=drive, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert unsent(config.folder / SPOOL) == 0
    must_be_there_once(config)


def must_be_there_once(config: StudyConfig) -> None:
    client = MlflowClient(f"sqlite:///{config.storage.path}/mlflow.db")
    results = load_results(config.folder / LEDGER)
    runs = client.search_runs([str(results.experiment_id)], max_results=1000)
    assert {run.info.run_id for run in runs} == set(results.run_ids.values())
    assert len(runs) == TRIALS + 1
    assert {(run.info.status, run.data.tags["kd.state"]) for run in runs} == {
        ("FINISHED", "complete")
    }
    for row in results.rows:
        curve = read_curve(Path(row.directory))
        assert curve == tuple(record_of(row.number, epoch) for epoch in range(1, EPOCHS + 1))
        for name in curve[0].metrics:
            points = client.get_metric_history(row.run_id or "", name)
            assert [(p.step, p.timestamp, p.value) for p in points] == [
                (record.epoch, record.timestamp_ms, record.metrics[name]) for record in curve
            ]
        tested = client.get_metric_history(row.run_id or "", "test/accuracy")
        assert len(tested) == (row == results.winner)
    told = client.get_metric_history(results.parent_run_id, "study/complete")
    assert [(point.step, point.value) for point in told] == [(n, n) for n in range(1, TRIALS + 1)]
