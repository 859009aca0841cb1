"""What a study of a thousand trials asks of its driver, and one of many trials at a time.

    python benchmarks/scale.py                                 1,000 trials, one after the other; then 16 at a time
    python benchmarks/scale.py --ways trials --trials 300
    python benchmarks/scale.py --ways places --places 100 --epoch-s 5       takes some 12 GB of memory

`trials` is `kd-study run` with real trials of one epoch on scikit-learn's digits. The driver is looked at whenever a
trial ends: its memory, its CPU time (all threads, MLflow's with them) and what it has written; what lies on disk in
the end is counted; then the report is written once more. If anything grew with the trials' number, the last hundred
trials would show it beside the hundred around the first one.

`places` is the same driver on a Ray with so many CPUs as it says, which this machine need not have. The trials are
stand-ins: a process of Tune each, like a trial's, that sleeps through its epochs and then reports as many metrics as
a trial does. What is measured is the driver: how much of a CPU it takes for a result, and how long a result waits for
it. Many places with long epochs and few with short ones give it as many results a second. Written to
benchmarks/results/scale-cpu.json, with the machine's load over the last quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import ray
from environment import environment
from ray import tune

from study import tuning
from study.config import StudyConfig, parse_config
from study.driver import run_study
from study.jobs import Job
from study.report.links import PAGE
from study.report.page import write_report
from study.results import StudyResults, TrialRow
from study.trial import SCORES
from trainable.records import VAL_ACCURACY, VALUE, EpochRecord

RESULTS = Path(__file__).parent / "results"
MIB = 2**20
EARLY = 200
"""Trials after which the driver's memory must be flat."""
SPAN = 100
"""Trials over which a rate is taken."""
EPOCHS, METRICS = 20, 55
"""Of a stand-in."""
MLFLOW_TABLES = ("runs", "metrics", "params", "tags")
TREE: dict[str, Any] = {
    "study": {"name": "scale"},
    "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 64},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "none"},
    "train": {"epochs": 1},
    "resources": {"gpus_per_worker": 0},
    "search": {
        "optim.lr": {"loguniform": [0.01, 0.5]},
        "optim.weight_decay": {"loguniform": [1e-5, 1e-2]},
        "data.batch_size": {"choice": [32, 64, 128]},
    },
}


class Meter:
    """A display that looks at its own process whenever a trial ends."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.looks: list[dict[str, float]] = []
        self.delays: list[float] = []
        """Seconds from the end of an epoch to when it was recorded."""

    def open(self, slots: int, ended: Sequence[TrialRow]) -> Meter:
        return self

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None: ...
    def message(self, text: str) -> None:
        print(text, flush=True)

    def phase(self, text: str) -> None:
        print(text, flush=True)

    def trial_started(self, row: TrialRow) -> None: ...
    def epoch(self, row: TrialRow, record: EpochRecord, epochs_total: int) -> None:
        self.delays.append(time.time() - record.timestamp_ms / 1000)

    def trial_ended(self, row: TrialRow) -> None:
        if row.state != "complete":
            raise RuntimeError(f"{row.label} {row.state}: {row.error}")
        if row.role == "trial":
            self.looks.append(self.look())

    def look(self) -> dict[str, float]:
        spent, memory = self._process.cpu_times(), self._process.memory_info()
        return {
            "at_s": time.perf_counter(),
            "cpu_s": spent.user + spent.system,
            "rss_mib": memory.rss / MIB,
            "written": float(self._process.io_counters().write_bytes),
        }


def by_trials(trials: int, folder: Path) -> dict[str, Any]:
    """Figures of real trials, one after the other."""
    tree = TREE | {"study": {"name": "scale", "trials": trials, "concurrency": 1}}
    config = parse_config(tree | {"storage": {"path": str(folder)}})
    meter = Meter()
    results = run_study(config, meter.open)
    looks = meter.looks
    late = [look["rss_mib"] for look in looks[min(EARLY, trials // 2) :]]
    return {
        "trials": trials,
        "rss_mib": {"early": late[0], "last": late[-1], "largest": max(late)},
        "grown": max(late) / late[0] - 1,
        "around_the_100th": rates(looks[SPAN // 2 : SPAN + SPAN // 2]),
        "at_the_end": rates(looks[-SPAN:]),
        **left_on_disk(config, folder, results),
    }


def by_places(places: int, epoch_s: float, folder: Path) -> dict[str, Any]:
    """Figures of stand-ins, so many at a time, whose epochs take so long."""
    tree = TREE | {"study": {"name": "scale", "trials": 3 * places}, "train": {"epochs": EPOCHS}}
    config = parse_config(tree | {"storage": {"path": str(folder)}})
    meter = Meter()
    tuning.run_job = stand_in(epoch_s)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with ray.init("local", num_cpus=places, log_to_driver=False, logging_level=logging.ERROR):
        run_study(config, meter.open)
    # Without the first trials, whose processes begin, and the last, beside which places stand empty.
    full = meter.looks[places : 2 * places]
    measured = rates(full)
    seconds = full[-1]["at_s"] - full[0]["at_s"]
    return {
        "places": places,
        "epoch_s": epoch_s,
        "metrics_a_result": METRICS,
        "results_a_second": EPOCHS * (len(full) - 1) / seconds,
        "driver_cpu_s_a_result": measured["driver_cpu_s"] / EPOCHS,
        "cpus_of_the_driver": measured["driver_cpu_s"] * (len(full) - 1) / seconds,
        "delay_s": {
            "median": statistics.median(meter.delays),
            "99 of 100": statistics.quantiles(meter.delays, n=100)[-1],
        },
        "rss_mib": full[-1]["rss_mib"],
    }


def stand_in(epoch_s: float) -> Callable[..., None]:
    """In place of a trial: sleeps, and reports."""

    def run_job(drawn: dict[str, Any], study: StudyConfig, teacher_weights: Path | None) -> None:
        job = Job.from_dict(drawn["job"])
        if job.split is not None:
            tune.report({SCORES: {}, VALUE: 0.0})
            return
        folder = job.folder(study)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "best.safetensors").touch()
        for epoch in range(1, EPOCHS + 1):
            time.sleep(epoch_s)
            metrics = {f"grad/norm.block{number}": 1.0 / epoch for number in range(METRICS)}
            metrics[VAL_ACCURACY] = 1 - 1 / (epoch + 1)
            record = EpochRecord(epoch, metrics, int(time.time() * 1000))
            tune.report(record.to_result(EPOCHS))

    return run_job


def rates(looks: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means a trial between the first look and the last."""
    first, last, trials = looks[0], looks[-1], len(looks) - 1
    return {
        "seconds": (last["at_s"] - first["at_s"]) / trials,
        "driver_cpu_s": (last["cpu_s"] - first["cpu_s"]) / trials,
        "driver_written_mib": (last["written"] - first["written"]) / MIB / trials,
    }


def left_on_disk(config: StudyConfig, storage: Path, results: StudyResults) -> dict[str, Any]:
    """What a trial left, and what the report takes."""
    count = len(results.of("trial"))
    database = storage / "mlflow.db"
    with closing(sqlite3.connect(database)) as opened:
        rows = sum(
            opened.execute(f"select count(*) from {table}").fetchone()[0] for table in MLFLOW_TABLES
        )
    places = {"study": config.folder, "mlartifacts": storage / "mlartifacts"}
    files = {
        name: [path for path in place.rglob("*") if path.is_file()]
        for name, place in places.items()
    }
    started = time.perf_counter()
    write_report(results, config.folder)
    return {
        "files_a_trial": {name: len(found) / count for name, found in files.items()},
        "bytes_a_trial": {
            **{name: sum(p.stat().st_size for p in found) / count for name, found in files.items()},
            "mlflow.db": database.stat().st_size / count,
        },
        "mlflow_rows_a_trial": rows / count,
        "mlflow_rows_a_second": rows / results.seconds,
        "report": {
            "seconds": time.perf_counter() - started,
            "mib": (config.folder / PAGE).stat().st_size / MIB,
        },
    }


def main() -> None:
    """Measure, print, write."""
    layout = argparse.RawTextHelpFormatter
    command = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    command.add_argument("--trials", type=int, default=1000)
    command.add_argument("--places", type=int, default=16)
    command.add_argument("--epoch-s", type=float, default=0.5)
    command.add_argument(
        "--ways", nargs="*", choices=("trials", "places"), default=("trials", "places")
    )
    command.add_argument("--output", type=Path, default=RESULTS)
    options = command.parse_args()
    path = options.output / "scale-cpu.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    for way in options.ways:
        with tempfile.TemporaryDirectory() as name:
            if way == "trials":
                found = by_trials(options.trials, Path(name))
            else:
                found = by_places(options.places, options.epoch_s, Path(name))
        record[way] = {**found, "load_average": os.getloadavg()[2]}
        print(way, json.dumps(found, indent=1))
    record["environment"] = environment()
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
