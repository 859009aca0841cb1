"""Train one student with `kd-study train` and record what it reached.

    python benchmarks/train_once.py configs/cifar100_stablekd.yaml \
        --set data.source=parquet --set data.root=/path/to/cifar100

The test accuracies are measured once, after training. Stopped half-way, the same command goes on.
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

from study.config import load_single
from study.results import StudyResults, TrialRow, find_results

RESULTS = Path(__file__).parent / "results"
CURVES = ("val/accuracy", "train/loss", "train/stage", "train/images_per_second", "amp/skipped")


def main() -> None:
    """Run, then write benchmarks/results/<study>-<device>.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="PATH=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    command = ["train", str(arguments.config)]
    for setting in arguments.settings:
        command += ["--set", setting]
    subprocess.run([sys.executable, "-m", "study", *command], check=True)
    config, _ = load_single(arguments.config, arguments.settings)
    results = find_results(Path(config.storage.path), config.study.name)
    record = {
        "command": ["kd-study", "train", str(arguments.config)],
        "environment": environment(),
        "config": config.model_dump(mode="json", exclude_none=True, exclude={"storage"}),
        "runs": [_run(results, row) for row in results.rows],
        "seconds": results.seconds,
    }
    record["config"]["data"].pop("root", None)
    device = (record["environment"]["gpus"] or ["cpu"])[0].replace(" ", "-").lower()
    path = arguments.output / f"{config.study.name}-{device}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


def _run(results: StudyResults, row: TrialRow) -> dict[str, Any]:
    client = MlflowClient(results.tracking_uri)
    curves = {
        name: [point.value for point in client.get_metric_history(row.run_id or "", name)]
        for name in CURVES
    }
    figures = row.model_dump(include={"role", "state", "value", "test_accuracy", "seconds"})
    return {**figures, "curves": curves}


if __name__ == "__main__":
    main()
