"""Train one student, or run a study, with the product's own command, and record what came of it.

    python benchmarks/run_once.py train configs/cifar100_stablekd.yaml \
        --set data.source=parquet --set data.root=/path/to/cifar100
    python benchmarks/run_once.py run configs/cifar100_stablekd.yaml …

Stopped half-way, the same command goes on. Written to benchmarks/results/<study>-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from environment import environment
from mlflow.tracking import MlflowClient

from study.config import StudyConfig, load_config, load_single
from study.ledger import find_results
from study.results import StudyResults, TrialRow

RESULTS = Path(__file__).parent / "results"
FIGURES = {
    *("role", "number", "state", "params", "epochs", "value"),
    *("test_accuracy", "seconds", "error"),
}
PLACES = {"data": {"root"}, "teacher": {"checkpoint"}, "storage": True}
"""Keys that say where things lie on a machine; records are without them."""
CURVES = ("val/accuracy", "train/loss", "train/stage", "train/images_per_second", "amp/skipped")


def main() -> None:
    """Run, then write."""
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("command", choices=("train", "run"), help="of kd-study")
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="PATH=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    command = [arguments.command, str(arguments.config)]
    for setting in arguments.settings:
        command += ["--set", setting]
    subprocess.run([sys.executable, "-m", "study", *command], check=True)
    config = _load(arguments)
    results = find_results(Path(config.storage.path), config.study.name)
    record: dict[str, Any] = {
        "command": ["kd-study", arguments.command, str(arguments.config)],
        "settings": [s for s in arguments.settings if not _is_place(s)],
        "environment": environment(),
        "config": config.model_dump(mode="json", exclude_none=True, exclude=PLACES),
        "runs": [_run(results, row) for row in results.rows],
        "seconds": results.seconds,
    }
    gpus = record["environment"]["gpus"] or ["cpu"]
    device = (f"{len(gpus)}x " if len(gpus) > 1 else "") + gpus[0]
    path = arguments.output / f"{config.study.name}-{device.replace(' ', '-').lower()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


def _load(arguments: argparse.Namespace) -> StudyConfig:
    if arguments.command == "run":
        return load_config(arguments.config, arguments.settings)
    return load_single(arguments.config, arguments.settings)[0]


def _is_place(setting: str) -> bool:
    section, _, key = setting.partition("=")[0].partition(".")
    keys = PLACES.get(section, ())
    return keys is True or key in keys


def _run(results: StudyResults, row: TrialRow) -> dict[str, Any]:
    client = MlflowClient(results.tracking_uri)
    curves = {
        name: [point.value for point in client.get_metric_history(row.run_id or "", name)]
        for name in CURVES
    }
    figures = row.model_dump(include=FIGURES)
    return {**figures, "curves": curves}


if __name__ == "__main__":
    main()
