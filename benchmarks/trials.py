"""What a trial costs beside its training, where a study has many.

    python benchmarks/trials.py                              10 trials by each way
    python benchmarks/trials.py --trials 200 --ways study

Trials of one epoch on scikit-learn's digits, one at a time, one core each. `study` is `kd-study run`: one process takes
one trial after another, Optuna proposes and MLflow records them, and at the end the best is tested and the report
written. `study, TorchTrainer` is the same with `train.launcher: torch_trainer`, where Ray Train sets up a group of
workers for every trial. `Tune` is Ray Tune alone, which calls the same loop in a new process for every trial.

The cost of a trial is the seconds from the search's beginning to the end over the number of trials, less those of its
training alone (the median of trials one after the other in one process). Written to
benchmarks/results/trials-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from environment import environment
from ray import tune
from ray.tune import RunConfig, TuneConfig, Tuner

from study.cluster import connected
from study.results import find_results
from trainable import tasks
from trainable.config import TrialConfig

RESULTS = Path(__file__).parent / "results"
ALONE = 8
"""Trials that are timed alone, after one that is not."""
TRIAL: dict[str, Any] = {
    "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 64},
    "teacher": {"model": "mini_resnet_10_4", "train": {"epochs": 1}},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "kd", "alpha": 0.5},
    "train": {"epochs": 1},
}


def training_seconds(folder: Path, teacher: Path) -> float:
    """Of a trial alone."""
    seconds: list[float] = []
    for number in range(ALONE + 1):
        started = time.perf_counter()
        train({"folder": folder / str(number), "teacher": teacher})
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def train(drawn: dict[str, Any]) -> None:
    """A trial without a study."""
    config = TrialConfig.model_validate(TRIAL)
    task = tasks.TrialTask(config, drawn["folder"], drawn["teacher"])
    tasks.train(task, lambda _: None, tasks.default_device(config))


def by_study(trials: int, folder: Path, launcher: str) -> float:
    """Seconds of a study from the search's beginning to the end."""
    path, name = folder / f"{launcher}.yaml", f"trials-{launcher.replace('_', '-')}"
    settings = {
        **TRIAL,
        "study": {"name": name, "trials": trials, "concurrency": 1},
        "storage": {"path": str(folder / launcher)},
        "train": {**TRIAL["train"], "launcher": launcher},
        "search": {"optim.lr": {"loguniform": [0.01, 0.5]}},
    }
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "study", "run", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = find_results(folder / launcher, name)
    complete = [row for row in results.of("trial") if row.state == "complete"]
    if len(complete) != trials or results.search_began is None:
        raise RuntimeError(f"{len(complete)} of {trials} trials ended well: see {folder}")
    return results.seconds - results.search_began


def by_tune(trials: int, folder: Path, teacher: Path) -> float:
    """Seconds of Tune alone."""
    space = {
        "folder": tune.grid_search([folder / "tune" / str(number) for number in range(trials)]),
        "teacher": teacher,
    }
    with connected():
        tuner = Tuner(
            tune.with_resources(train, {"CPU": 1}),
            param_space=space,
            tune_config=TuneConfig(max_concurrent_trials=1),
            run_config=RunConfig(storage_path=str(folder / "ray"), verbose=0),
        )
        started = time.perf_counter()
        tuner.fit()
        return time.perf_counter() - started


def main() -> None:
    """Measure, print, write."""
    layout = argparse.RawTextHelpFormatter
    command = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    ways = ("study", "study, TorchTrainer", "Tune")
    command.add_argument("--trials", type=int, default=10)
    command.add_argument("--ways", nargs="*", choices=ways, default=ways)
    command.add_argument("--output", type=Path, default=RESULTS)
    options = command.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by_study(1, folder, "auto")  # trains the teacher, and fills the node's cache
        (teacher,) = (folder / "auto" / "teachers").glob("*.safetensors")
        alone = training_seconds(folder / "alone", teacher)
        print(f"training alone        {alone:6.2f} s a trial")
        for way in options.ways:
            own = folder / way.replace(", ", "-")
            own.mkdir()
            if way == "Tune":
                seconds = by_tune(options.trials, own, teacher)
            else:
                seconds = by_study(
                    options.trials, own, "auto" if way == "study" else "torch_trainer"
                )
            cost = seconds / options.trials - alone
            found[way] = {"seconds": seconds, "cost_a_trial_s": cost}
            print(f"{way:<21} {seconds:6.1f} s in all, {cost:5.2f} s a trial beside its training")
    where = environment()
    device = (where["gpus"] or ["cpu"])[0].replace(" ", "-").lower()
    path = options.output / f"trials-{device}.json"
    known = json.loads(path.read_text())["trials"] if path.exists() else {}
    record = {"environment": where, "trials": known}
    record["trials"][str(options.trials)] = {"training_s": alone, "ways": found}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
