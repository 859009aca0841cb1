"""Record the learning curves of real trials, on which pruners are compared.

    python benchmarks/learning_curves.py --data /path/to/cifar100 --teacher r34.safetensors

The teacher must not have been trained on the pictures that the study holds out: students then inherit what it knows of
them, and their validation accuracy says nothing (`--name learning-curves-seen` is such a study, kept to show it).

A study by the product's own command, ResNet34 → ResNet18 on CIFAR-100: trials drawn at random from `SPACE`,
none stopped early. Every complete trial is kept, by epoch, in benchmarks/results/<name>-<device>.parquet,
and what it was run on in the JSON file beside it. Stopped half-way, the same command goes on; what is complete by then
is written all the same. Under MPS (`nvidia-cuda-mps-control -d`) trials that share a GPU take less time.

Trials of even numbers are for tuning, those of odd numbers are held out: they are drawn alike, and the split is part of
the file, so that it stands before anything is tuned. With another `--seed` than 0 other trials are drawn, all of which
are held out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from environment import environment

from study.curves import read_curve
from study.ledger import find_results
from study.results import StudyResults, TrialRow

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).parent.parent / "configs" / "cifar100_stablekd.yaml"
SPACE: dict[str, Any] = {
    "distill.decomposition": {
        "choice": ["1/0", "2/0", "2/1", "3/1", "4/2", "5/0", "5/1", "5/2", "5/3"]
    },
    "distill.lam": {"loguniform": [0.1, 10]},
    "distill.temperature": {"loguniform": [1, 8]},
    "optim.lr": {"loguniform": [0.02, 1]},
    "optim.peak_decay": {"uniform": [0.25, 0.75]},
    "optim.weight_decay": {"loguniform": [5e-5, 5e-3]},
    "data.batch_size": {"choice": [64, 128, 256]},
}
CURVE = {"val_accuracy": "val/accuracy", "train_loss": "train/loss", "stage": "train/stage"}
"""Column → metric of the epochs."""


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What differs from the config."""
    return {
        "study.name": options.name,
        "study.trials": options.trials,
        "study.seed": options.seed,
        "study.first_trials": [],
        "train.epochs": options.epochs,
        "study.sampler": "random",
        "study.pruner": {"name": "none"},
        "storage.path": str(options.storage),
        "data.source": "parquet",
        "data.root": str(options.data),
        "teacher.checkpoint": str(options.teacher),
        "teacher.train": None,
        "resources.gpus_per_worker": options.share,
        "search": SPACE,
    }


def halves(number: int, seed: int) -> str:
    """Which half of the trials a number is of."""
    return "holdout" if seed or number % 2 else "tuning"


def rows_of(row: TrialRow, seed: int) -> list[dict[str, Any]]:
    """The epochs of a trial with its hyperparameters and wall time."""
    drawn = {path.rpartition(".")[2]: value for path, value in row.params.items()}
    facts = {"trial": row.number, "half": halves(row.number, seed), **drawn, "seconds": row.seconds}
    return [
        {
            **facts,
            "epoch": record.epoch,
            **{column: record.metrics[name] for column, name in CURVE.items()},
        }
        for record in read_curve(Path(row.directory))
    ]


def table_of(results: StudyResults, seed: int) -> Any:
    """Every epoch of every complete trial, as a table of pyarrow."""
    complete = [row for row in results.of("trial") if row.state == "complete"]
    lines = [line for row in complete for line in rows_of(row, seed)]
    columns = dict.fromkeys(column for line in lines for column in line)
    # Not all trials draw all hyperparameters.
    return pa.table({column: [line.get(column) for line in lines] for column in columns})


def accuracies(row: TrialRow) -> dict[str, float | None]:
    """On the pictures that the study held out, and on the test split."""
    return {"validation": row.value, "test": row.test_accuracy}


def write(results: StudyResults, options: argparse.Namespace) -> Path:
    """The table, and beside it where it comes from."""
    where = environment()
    device = (where["gpus"] or ["cpu"])[0].replace(" ", "-").lower()
    path: Path = options.output / f"{options.name}-{device}.parquet"
    table = table_of(results, options.seed)
    pq.write_table(table, path, compression="zstd")
    own = ("data.root", "storage.path", "teacher.checkpoint")
    record = {
        "environment": where,
        "config": CONFIG.name,
        "settings": {key: v for key, v in settings(options).items() if key not in own},
        "accuracies": {
            row.label: accuracies(row) for row in results.rows if row.test_accuracy is not None
        },
        "trials": len(set(table["trial"].to_pylist())),
        "failed": [row.error for row in results.of("trial") if row.state == "failed"],
        "study_seconds": results.seconds,
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return path


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    layout = argparse.RawTextHelpFormatter
    made = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    made.add_argument("--data", type=Path, required=True, help="CIFAR-100 in Parquet files")
    made.add_argument("--teacher", type=Path, required=True, help="weights of a ResNet34")
    made.add_argument("--name", default="learning-curves", help="of the study and its files")
    made.add_argument("--trials", type=int, default=96)
    made.add_argument("--epochs", type=int, default=20)
    made.add_argument("--seed", type=int, default=0, help="of what is drawn")
    made.add_argument("--share", type=float, default=0.25, help="of a GPU for each trial")
    made.add_argument("--storage", type=Path, default=Path("runs"))
    made.add_argument("--output", type=Path, default=RESULTS)
    made.add_argument("--write-only", action="store_true", help="keep what a study has so far")
    return made


def main() -> None:
    """Run the study, and keep its curves."""
    options = parser().parse_args()
    options.storage, options.data = options.storage.resolve(), options.data.resolve()
    options.teacher = options.teacher.resolve()
    command = [sys.executable, "-m", "study", "run", str(CONFIG)]
    for path, value in settings(options).items():
        command += ["--set", f"{path}={json.dumps(value)}"]
    ended = 0
    if not options.write_only:
        ended = subprocess.run(command, check=False).returncode
    print(f"wrote {write(find_results(options.storage, options.name), options)}")
    sys.exit(ended)


if __name__ == "__main__":
    main()
