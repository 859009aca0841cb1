"""How fast a study's writer fills MLflow, beside bare `log_batch` calls of full batches.

    python benchmarks/logging_rate.py

Both write the points of 200 trials × 100 epochs × 20 metrics to a fresh SQLite store with 200 runs in it, one
after the other and several times over. The bare calls get 1,000 metrics each. The writer gets what a driver gives
it, the epochs of 8 trials at a time in turn, as fast as a driver can: its time is from the first epoch until the
store has the last. Rates are also given by the process's CPU time, which other programs disturb less. Then: what
reporting an epoch costs the driver's own thread.

(The name is not `logging`: a script's folder comes first on Python's path, and that would be everyone's `logging`.)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from environment import environment
from mlflow.entities import Metric

from study.config import parse_config
from study.entries import Line
from study.folder import connect, open_results
from study.jobs import Job
from study.mirror import NoMirror
from study.recorder import Recorder
from study.results import TrialRow
from study.spool import SPOOL, Spool
from study.store import Store, open_store
from study.telling import epoch_ended
from study.tracking import VALUES_A_CALL, Tracker
from study.writer import Writer
from trainable.records import EpochRecord

RESULTS = Path(__file__).parent / "results"
TRIALS, EPOCHS, METRICS, AT_A_TIME = 200, 100, 20, 8
REPORTS = 400
"""Epochs of which the driver's own cost is measured."""

T = TypeVar("T")


@dataclass(frozen=True)
class Spent:
    """Time that all points took."""

    wall_s: float
    cpu_s: float
    """Of all threads of this process."""


class Nobody:
    """A watcher who looks away."""

    def phase(self, text: str) -> None: ...
    def message(self, text: str) -> None: ...
    def trial_started(self, row: TrialRow) -> None: ...
    def epoch(self, row: TrialRow, record: EpochRecord, epochs_total: int) -> None: ...
    def trial_ended(self, row: TrialRow) -> None: ...


def main() -> None:
    """Measure, print, and write benchmarks/results/logging-cpu.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=TRIALS, help="of a round")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    bare, ours = list[Spent](), list[Spent]()
    for number in range(1, arguments.rounds + 1):
        bare.append(in_a_folder(partial(write_bare, arguments.trials)))
        ours.append(in_a_folder(partial(write_ours, arguments.trials)))
        print(f"round {number}: bare {bare[-1]}, the writer {ours[-1]}", flush=True)
    points = arguments.trials * EPOCHS * METRICS
    record: dict[str, Any] = {
        "command": f"python benchmarks/logging_rate.py --rounds {len(ours)} --trials {arguments.trials}",
        "environment": environment(),
        "what": f"in a round {arguments.trials} trials × {EPOCHS} epochs × {METRICS} metrics into SQLite",
        "wall": compared(points, [one.wall_s for one in bare], [one.wall_s for one in ours]),
        "cpu": compared(points, [one.cpu_s for one in bare], [one.cpu_s for one in ours]),
        "load_average": os.getloadavg()[0],
        "driver_ms_per_epoch": in_a_folder(drivers_cost),
    }
    path = arguments.output / "logging-cpu.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def compared(points: int, bare_s: list[float], ours_s: list[float]) -> dict[str, Any]:
    """Points per second of each round, with their medians and what they are to each other."""
    bare, ours = [points / s for s in bare_s], [points / s for s in ours_s]
    ratios = [mine / theirs for mine, theirs in zip(ours, bare, strict=True)]
    return {
        "bare_points_per_s": [round(rate) for rate in bare],
        "writer_points_per_s": [round(rate) for rate in ours],
        "median_bare": round(statistics.median(bare)),
        "median_writer": round(statistics.median(ours)),
        "median_ratio_of_a_round": round(statistics.median(ratios), 3),
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(bare), 3),
    }


@contextmanager
def timed(spent: list[Spent]) -> Iterator[None]:
    """Add what the block took."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    spent.append(Spent(time.perf_counter() - wall, time.process_time() - cpu))


def in_a_folder(measure: Callable[[Path], T]) -> T:
    """Measure in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="logging-rate-") as folder:
        return measure(Path(folder))


def epoch_of(trial: int, epoch: int) -> EpochRecord:
    """Made up, and different for every trial and epoch."""
    values = {f"train/metric_{i}": trial + epoch / EPOCHS + i for i in range(METRICS)}
    return EpochRecord(epoch, values, 1_700_000_000_000 + epoch)


def reports(trials: int) -> Iterator[tuple[int, EpochRecord]]:
    """All epochs in the order in which a driver hears of them."""
    for first in range(0, trials, AT_A_TIME):
        for epoch in range(1, EPOCHS + 1):
            for trial in range(first, min(first + AT_A_TIME, trials)):
                yield trial, epoch_of(trial, epoch)


def store_with_runs(trials: int, folder: Path) -> tuple[Store, list[str]]:
    """A fresh store, and the ids of a run for each trial."""
    store = open_store(f"sqlite:///{folder}/mlflow.db", "logging-rate", folder / "artifacts")
    runs = [store.client.create_run(store.experiment_id) for _ in range(trials)]
    return store, [run.info.run_id for run in runs]


def write_bare(trials: int, folder: Path) -> Spent:
    """The calls of `log_batch` alone, without what it takes to make their points."""
    store, ids = store_with_runs(trials, folder)
    spent: list[Spent] = []
    for trial, run_id in enumerate(ids):
        points = metrics_of(trial)
        for start in range(0, len(points), VALUES_A_CALL):
            batch = points[start : start + VALUES_A_CALL]
            with timed(spent):
                store.client.log_batch(run_id, metrics=batch)
    return Spent(sum(one.wall_s for one in spent), sum(one.cpu_s for one in spent))


def metrics_of(trial: int) -> list[Metric]:
    """All points of a trial."""
    records = [epoch_of(trial, epoch) for epoch in range(1, EPOCHS + 1)]
    return [
        Metric(name, value, record.timestamp_ms, record.epoch)
        for record in records
        for name, value in record.metrics.items()
    ]


def write_ours(trials: int, folder: Path) -> Spent:
    """From the first reported epoch until everything is in the store."""
    store, ids = store_with_runs(trials, folder)
    rows = [TrialRow(role="trial", number=number, directory="") for number in range(trials)]
    with Spool(folder / SPOOL) as spool:
        spool.name_runs({row.label: run_id for row, run_id in zip(rows, ids, strict=True)})
        spent: list[Spent] = []
        with Writer(spool, Tracker(store)) as writer, timed(spent):
            for number, (trial, record) in enumerate(reports(trials), start=1):
                writer.add(Line(number=number, entries=tuple(epoch_ended(rows[trial], record))))
            remains = writer.drain(3600)
    assert (remains.unsent, remains.refused) == (0, 0)
    assert len(store.client.get_metric_history(ids[-1], "train/metric_0")) == EPOCHS
    return spent[0]


def drivers_cost(folder: Path) -> dict[str, float]:
    """Milliseconds of the driver's thread for an epoch, with 200 trials in the ledger and the writer at work.

    `spool` is what MLflow costs it; `all` is that with the curve and the ledger.
    """
    config = parse_config(
        {
            "study": {"name": "rate", "trials": TRIALS},
            "storage": {"path": str(folder)},
            "data": {"source": "digits"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "none"},
            "search": {"optim.lr": {"loguniform": [1e-4, 1.0]}},
        }
    )
    config.folder.mkdir()
    store = connect(config)
    jobs = [Job("trial", number, {"optim.lr": 0.1}) for number in range(TRIALS)]
    every, spooled = list[float](), list[float]()
    with Spool(config.folder / SPOOL) as spool, Writer(spool, Tracker(store)) as writer:
        results = open_results(config, store, spool)
        add = writer.add

        def timed_add(line: Line) -> None:
            began = time.perf_counter()
            add(line)
            spooled.append(time.perf_counter() - began)

        recorder = Recorder(config, results, writer, Nobody(), NoMirror())
        for job in jobs:
            recorder.started(job)
        writer.add = timed_add  # type: ignore[method-assign]
        for number in range(REPORTS):
            time.sleep(0.02)
            began = time.perf_counter()
            record = epoch_of(number % AT_A_TIME, 1 + number // AT_A_TIME)
            recorder.reported(jobs[number % AT_A_TIME], record, EPOCHS)
            every.append(time.perf_counter() - began)
    # Every report adds its own line, after that of the one before, which is known already.
    return {
        "spool_median": round(statistics.median(spooled[1::2]) * 1000, 3),
        "spool_slowest_of_a_hundred": round(
            statistics.quantiles(spooled[1::2], n=100)[98] * 1000, 3
        ),
        "all_median": round(statistics.median(every) * 1000, 3),
        "all_slowest_of_a_hundred": round(statistics.quantiles(every, n=100)[98] * 1000, 3),
    }


if __name__ == "__main__":
    main()
