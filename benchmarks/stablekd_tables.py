"""The tables of the StableKD paper, cell by cell, each trained by `kd-study train`.

    python benchmarks/stablekd_tables.py --list          what each cell is in the paper and here, and what is missing
    python benchmarks/stablekd_tables.py --table 5 --epochs 20 --data /path/to/cifar100 --parallel 4
    python benchmarks/stablekd_tables.py --table 5 --epochs 20 --data … --teacher r34.safetensors
    python benchmarks/stablekd_tables.py --cells 2-kd-0-2-300 4-kd---mse-60 --data … some, as the list calls them
    python benchmarks/stablekd_tables.py --table 1 --student swin_t --data /path/to/imagenet --teacher swin_s.pth

Every cell of `stablekd_cells` is trained once for each seed on the whole training split (`data.val_fraction: 0`); its
student after the last epoch is scored on the test split, once. A call trains one student on one data set. `--data` is
its folder: of CIFAR-100 in Hugging Face's Parquet layout, of the others as their configs say. Without `--teacher` the
config's own is taken: trained first, or the file that it names.

Written after every run to benchmarks/results/stablekd-tables-<device>.json, and for others than ResNet34 → ResNet18
on CIFAR-100 to stablekd-tables-<data set>-<student>-<device>.json. Stopped half-way, the same command goes on, with the
runs that are missing and within the run that was cut off. With `--parallel` so many runs share the machine's GPUs, best
under MPS (`nvidia-cuda-mps-control -d`), and one Ray cluster: each alone would start hundreds of threads for its own.
A run's `parallel` in the record is that number: its seconds are of a machine that so many may have shared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import ray
from environment import environment
from stablekd_cells import CELLS, Cell
from stablekd_listing import kept_records, listing

from study.cluster import connected
from study.curves import read_curve
from study.ledger import find_results
from study.results import StudyResults, TrialRow

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parent.parent / "configs"
SEEDS = (0, 1, 2)
USUAL_PAIR = ("cifar100", "resnet18")


def missing(cell: Cell, known: Mapping[str, Any]) -> list[int]:
    """Seeds of a cell that no run has."""
    runs = known.get(cell.name, {}).get("runs", {})
    return [seed for seed in SEEDS if str(seed) not in runs]


def arguments(cell: Cell, seed: int, options: argparse.Namespace) -> list[str]:
    """`--set path=value` for everything that differs from the cell's config."""
    name = f"{cell.name}-{seed}"
    settings: dict[str, Any] = {
        "study.name": name,
        "storage.path": options.storage / name,
        "data.root": options.data,
        "data.val_fraction": 0,
        "train.epochs": cell.epochs,
        "train.seed": seed,
        **cell.settings,
    }
    if options.share is not None:
        settings["resources.gpus_per_worker"] = options.share
    if cell.pair[0] == "cifar100":
        settings["data.source"] = "parquet"
    if not cell.has_teacher:
        settings["teacher"] = None
    elif options.teacher is not None:
        settings |= {"teacher.checkpoint": options.teacher.resolve(), "teacher.train": None}
    return [
        word
        for path, value in settings.items()
        for word in ("--set", f"{path}={'null' if value is None else value}")
    ]


def train(cell: Cell, seed: int, options: argparse.Namespace) -> StudyResults:
    """One student, or the rest of one that was cut off."""
    name = f"{cell.name}-{seed}"
    command = [sys.executable, "-m", "study", "train", str(CONFIGS / cell.config)]
    command += arguments(cell, seed, options)
    options.storage.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with (options.storage / f"{name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environ)
    return find_results(options.storage / name, f"{name}-train")


def run_of(results: StudyResults) -> dict[str, Any]:
    """The figures of one training; its curves where it was validated."""
    (row,) = results.of("trial")
    teachers = [teacher.test_accuracy for teacher in results.of("teacher")]
    return {
        "test_accuracy": row.test_accuracy,
        "seconds": row.seconds,
        "teacher_test_accuracy": teachers[0] if teachers else None,
        **({} if row.value is None else {"curves": curves_of(row)}),
    }


def curves_of(row: TrialRow) -> dict[str, list[float]]:
    """Validation accuracy and the parameters' path length by block, an epoch each."""
    epochs = read_curve(Path(row.directory))
    names = [name for name in epochs[0].metrics if name.startswith("update/distance")]
    wanted = ("val/accuracy", *names)
    return {name: [epoch.metrics[name] for epoch in epochs] for name in wanted}


def share_of(gpus: int, parallel: int) -> float | None:
    """GPUs a run holds where so many run at once; in the four places that Ray counts, rounded down."""
    if not gpus:
        return None
    return math.floor(1e4 / math.ceil(parallel / gpus)) / 1e4


def summary(runs: Mapping[str, Any]) -> dict[str, float]:
    """Mean and sample standard deviation over seeds, in per cent."""
    values = [100 * run["test_accuracy"] for run in runs.values()]
    found = {"mean": statistics.mean(values)}
    return found | ({"sd": statistics.stdev(values)} if len(values) > 1 else {})


def teacher_of(options: argparse.Namespace) -> str:
    """What tells one teacher from another."""
    if options.teacher is None:
        return "trained by each run, as its config says"
    return hashlib.sha256(options.teacher.read_bytes()).hexdigest()


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells that were asked for."""
    return [
        cell
        for cell in CELLS
        if options.table in (None, cell.table)
        and options.student in (None, cell.pair[1])
        and options.epochs in (None, cell.epochs)
        and (not options.schemes or cell.scheme in options.schemes)
        and (not options.cells or cell.name in options.cells)
    ]


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    layout = argparse.RawTextHelpFormatter
    made = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    made.add_argument("--list", action="store_true", help="print the cells and end")
    made.add_argument("--table", choices=sorted({cell.table for cell in CELLS}))
    made.add_argument("--student", choices=sorted({cell.pair[1] for cell in CELLS}))
    made.add_argument("--epochs", type=int)
    made.add_argument("--schemes", nargs="*", help="e.g. KD StableKD-5/2")
    made.add_argument("--cells", nargs="*", help="by the names that --list gives them")
    made.add_argument("--seeds", type=int, nargs="*", default=SEEDS, choices=SEEDS)
    made.add_argument("--data", type=Path)
    made.add_argument("--teacher", type=Path)
    made.add_argument("--parallel", type=int, default=1, help="students trained at once")
    made.add_argument("--storage", type=Path, default=Path("runs/stablekd-tables"))
    made.add_argument("--output", type=Path, default=RESULTS)
    return made


def opened(path: Path, setting: Mapping[str, Any]) -> dict[str, Any]:
    """The record at `path`, or a new one; ValueError if its runs are of another environment or teacher.

    Students without a teacher may come first, and a record of them alone names none.
    """
    if not path.exists():
        return {"cells": {}}
    record = json.loads(path.read_text())
    if differ := [key for key, value in setting.items() if record.get(key, value) != value]:
        raise ValueError(
            f"{path} has runs of another {' and '.join(differ)}: choose another --output"
        )
    return record


def main() -> None:
    """Train what is missing."""
    command = parser()
    options = command.parse_args()
    if unknown := sorted(set(options.cells or ()) - {cell.name for cell in CELLS}):
        command.error(f"--cells must be names that --list gives, got {' '.join(unknown)}")
    cells = chosen(options)
    if options.list:
        print("\n".join(listing(cells, kept_records(RESULTS))))
        return
    pairs = sorted({cell.pair for cell in cells})
    if len(pairs) != 1:
        found = "; ".join(" ".join(pair) for pair in pairs) or "no cell at all"
        command.error(
            f"--table, --student, --schemes and --cells must leave one data set and student, got {found}"
        )
    if options.data is None:
        command.error(f"--data must name the folder of {pairs[0][0]}")
    options.storage, options.data = options.storage.resolve(), options.data.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    where = environment()
    date, gpus = where.pop("date"), where["gpus"]
    options.share = share_of(len(gpus), options.parallel)
    setting: dict[str, Any] = {"environment": where}
    if any(cell.has_teacher for cell in cells):
        setting["teacher"] = teacher_of(options)
    device = (gpus or ["cpu"])[0].replace(" ", "-").lower()
    own = () if pairs[0] == USUAL_PAIR else pairs[0]
    path = options.output / f"{'-'.join(('stablekd-tables', *own, device))}.json"
    try:
        record = opened(path, setting)
    except ValueError as error:
        command.error(str(error))
    record = {**record, "date": date, **setting}
    with connected():
        failed = train_missing(cells, options, record, path)
    print(f"wrote {path}")
    if failed:
        sys.exit(
            f"{failed} run(s) failed: see the logs in {options.storage}, and repeat the command"
        )


def train_missing(
    cells: list[Cell], options: argparse.Namespace, record: dict[str, Any], path: Path
) -> int:
    """Every run that the record lacks; it is written after each. How many failed."""
    failed = 0
    with ThreadPoolExecutor(options.parallel) as pool:
        futures = {
            pool.submit(train, cell, seed, options): (cell, seed)
            for seed in options.seeds
            for cell in cells
            if seed in missing(cell, record["cells"])
        }
        for future in as_completed(futures):
            cell, seed = futures[future]
            if isinstance(future.exception(), subprocess.CalledProcessError):
                failed += 1
                continue
            facts = {"scheme": cell.scheme, "epochs": cell.epochs, "paper": cell.paper}
            known = record["cells"].setdefault(cell.name, {**facts, "runs": {}})
            known["runs"][str(seed)] = {**run_of(future.result()), "parallel": options.parallel}
            known |= summary(known["runs"])
            path.write_text(json.dumps(record, indent=1) + "\n")
            print(json.dumps({"cell": cell.name, "seed": seed, **known["runs"][str(seed)]}))
    return failed


if __name__ == "__main__":
    main()
