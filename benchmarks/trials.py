"""What a trial costs beside its training, where a study has many.

    python benchmarks/trials.py                              10 trials by each way
    python benchmarks/trials.py --trials 200 --ways study
    python benchmarks/trials.py --ways efficiency            two trials at a time, of about 20 s each
    python benchmarks/trials.py --ways "two workers"

Trials of one epoch on scikit-learn's digits, one at a time, one core each. `study` is `kd-study run`: one process takes
one trial after another, Optuna proposes and MLflow records them, and at the end the best is tested and the report
written. `study, TorchTrainer` is the same with `train.launcher: torch_trainer`: one group of workers of Ray Train takes
one trial after another. `two workers` is that with `train.workers: 2`. `TorchTrainer` is Ray alone, which sets a group
up for every trial, in a process of Tune of its own. `Tune` is Ray Tune alone, which calls the same loop in a new
process for every trial.

The cost of a trial is the seconds from the search's beginning to the end over the number of trials, less those of its
training alone (the median of trials one after the other in one process; of two workers there is no such figure, and
nothing is subtracted). `command_s` is the whole command, with the start of Python, Ray and MLflow, and the references.

`efficiency` is training seconds over slot seconds, of trials of thirty epochs of a wider student: the seconds of all
epochs, validation and checkpoints with them, over those that two places were held. `between_trials` counts each place
from the training of its first trial to the end of its last, `of_the_study` all of the study, with its teacher, its
baseline and the start of the processes (not of Ray). Written to benchmarks/results/trials-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from environment import environment
from ray import tune
from ray.train import RunConfig as TrainRunConfig
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune import RunConfig, TuneConfig, Tuner

from study.cluster import connected
from study.curves import read_curve
from study.ledger import find_results
from study.results import StudyResults
from trainable import tasks
from trainable.config import TrialConfig

RESULTS = Path(__file__).parent / "results"
ALONE = 8
"""Trials that are timed alone, after one that is not."""
LONG: dict[str, Any] = {
    "teacher": {"model": "mini_resnet_10_4", "train": {"epochs": 2}},
    "student": {"model": "mini_resnet_18_16"},
    "train": {"epochs": 30},
}
"""A trial of a quarter of a minute. What lies between two trials does not grow with them: longer ones have the better
efficiency."""
STUDIES: dict[str, dict[str, Any]] = {
    "study": {},
    "study, TorchTrainer": {"train": {"epochs": 1, "launcher": "torch_trainer"}},
    "two workers": {"train": {"epochs": 1, "workers": 2}},
}
"""Ways to run a study: what changes in `TRIAL`."""
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


def run_study(folder: Path, trials: int, changes: dict[str, Any], at_once: int = 1) -> StudyResults:
    """The results of `kd-study run`, all of whose trials must end well."""
    path, name = folder / "study.yaml", "trials"
    settings = {
        **TRIAL,
        **changes,
        "study": {"name": name, "trials": trials, "concurrency": at_once},
        "storage": {"path": str(folder / "runs")},
        "search": {"optim.lr": {"loguniform": [0.01, 0.5]}},
    }
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "study", "run", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = find_results(folder / "runs", name)
    complete = [row for row in results.of("trial") if row.state == "complete"]
    if len(complete) != trials or results.search_began is None:
        raise RuntimeError(f"{len(complete)} of {trials} trials ended well: see {folder}")
    return results


def by_study(trials: int, folder: Path, changes: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a study from the search's beginning to the end, and of the whole command."""
    started = time.perf_counter()
    results = run_study(folder, trials, changes)
    assert results.search_began is not None
    return results.seconds - results.search_began, time.perf_counter() - started


def efficiency(trials: int, folder: Path) -> dict[str, float]:
    """Training seconds over slot seconds of trials of `LONG`, two at a time."""
    results = run_study(folder, trials, LONG, at_once=2)
    times = [_Times(Path(row.directory)) for row in results.of("trial")]
    others = [
        _Times(Path(row.directory)) for row in (*results.of("teacher"), *results.of("baseline"))
    ]
    trained = sum(each.trained for each in times)
    # Of each of the two places, from its first trial to its last one.
    between = sum(sorted(t.end for t in times)[-2:]) - sum(sorted(t.begin for t in times)[:2])
    whole = trained + sum(each.trained for each in others)
    return {
        "trial_s": statistics.median(each.trained for each in times),
        "between_trials": trained / between,
        "of_the_study": whole / (2 * results.seconds),
    }


class _Times:
    """Of a trial, in seconds."""

    def __init__(self, folder: Path) -> None:
        told = [record.timestamp_ms / 1000 for record in read_curve(folder)]
        epoch = (told[-1] - told[0]) / (len(told) - 1)
        self.trained = epoch * len(told)
        """Its epochs; the first, in which it was set up, counted as long as the mean of the others."""
        self.begin, self.end = told[0] - epoch, told[-1]


def by_tune(
    trials: int,
    folder: Path,
    teacher: Path,
    trainable: Callable[[dict[str, Any]], None],
    resources: dict[str, float],
) -> float:
    """Seconds of Tune alone, one trial at a time, each in a process of its own."""
    space = {
        "folder": tune.grid_search([folder / str(number) for number in range(trials)]),
        "teacher": teacher,
    }
    with connected():
        tuner = Tuner(
            tune.with_resources(trainable, resources),
            param_space=space,
            tune_config=TuneConfig(max_concurrent_trials=1),
            run_config=RunConfig(storage_path=str(folder / "ray"), verbose=0),
        )
        started = time.perf_counter()
        tuner.fit()
        return time.perf_counter() - started


def train_under_ray_train(drawn: dict[str, Any]) -> None:
    """A trial without a study, by one worker of a group of its own."""
    TorchTrainer(
        train,
        train_loop_config=drawn,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=TrainRunConfig(name=drawn["folder"].name, storage_path=str(drawn["folder"])),
    ).fit()


def measured(way: str, trials: int, folder: Path, teacher: Path, alone: float) -> dict[str, float]:
    """Seconds of a way, and what a trial costs by it."""
    figures: dict[str, float] = {}
    if way in STUDIES:
        figures["seconds"], figures["command_s"] = by_study(trials, folder, STUDIES[way])
    elif way == "Tune":
        figures["seconds"] = by_tune(trials, folder, teacher, train, {"CPU": 1})
    else:  # the group's worker has the CPU
        figures["seconds"] = by_tune(trials, folder, teacher, train_under_ray_train, {"memory": 1})
    trained = 0.0 if way == "two workers" else alone
    return {**figures, "cost_a_trial_s": figures["seconds"] / trials - trained}


def main() -> None:
    """Measure, print, write."""
    layout = argparse.RawTextHelpFormatter
    command = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    ways = (*STUDIES, "efficiency", "TorchTrainer", "Tune")
    command.add_argument("--trials", type=int, default=10)
    command.add_argument("--ways", nargs="*", choices=ways, default=ways)
    command.add_argument("--output", type=Path, default=RESULTS)
    options = command.parse_args()
    torch.set_num_threads(1)
    found, shares = dict[str, Any](), dict[str, float]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_study(folder, 1, {})  # trains the teacher, and fills the node's cache
        (teacher,) = (folder / "runs" / "teachers").glob("*.safetensors")
        alone = training_seconds(folder / "alone", teacher)
        print(f"training alone        {alone:6.2f} s a trial")
        for way in options.ways:
            own = folder / way.replace(", ", "-")
            own.mkdir()
            if way == "efficiency":
                shares = efficiency(options.trials, own)
                print(f"{way:<21} {shares}")
                continue
            found[way] = measured(way, options.trials, own, teacher, alone)
            print(f"{way:<21} {found[way]}")
    where = environment()
    device = (where["gpus"] or ["cpu"])[0].replace(" ", "-").lower()
    path = options.output / f"trials-{device}.json"
    record = json.loads(path.read_text()) if path.exists() else {"trials": {}, "efficiency": {}}
    record["environment"] = where
    if found:
        record["trials"][str(options.trials)] = {"training_s": alone, "ways": found}
    if shares:
        record["efficiency"] = {"trials": options.trials, **shares}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
