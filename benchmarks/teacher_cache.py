"""What a teacher that is asked once saves of a trial.

    python benchmarks/teacher_cache.py                           on CPUs, mini_resnet_18_16 → mini_resnet_10_16 at 8×8
    python benchmarks/teacher_cache.py --method stablekd         with the features of its cuts
    python benchmarks/teacher_cache.py --image-size 32 --teacher resnet34 --student resnet18 --precision bf16

Whole trials on scikit-learn's digits without augmentation, with `teacher.cache` and without, in turns, from an
untrained teacher, whose outputs take as long to compute. Times are those of an epoch's updates (as
train/images_per_second has them), medians over all epochs but each trial's first; gains are those of the rounds' pairs.
`asking_s` is how much longer than the others the first cached trial took until its first epoch ended: it asks about all
pictures. `equal` tells whether both forms end in the same records. Written to
benchmarks/results/teacher-cache-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import environment

from trainable import records, tasks
from trainable.config import TrialConfig
from trainable.networks.build import Pictures, build_teacher_network
from trainable.networks.weights import save_weights
from trainable.records import EpochRecord

RESULTS = Path(__file__).parent / "results"
METHODS = {
    "kd": {"method": "kd", "alpha": 0.5},
    "stablekd": {"method": "stablekd", "alpha": 0.5, "decomposition": "5/0"},
}
OF_THE_MACHINE = (
    records.TRAIN_IMAGES_PER_SECOND,
    records.TRAIN_DATA_WAIT,
    records.TRAIN_PEAK_MEMORY,
)


def config_of(options: argparse.Namespace, *, cache: bool) -> TrialConfig:
    """Of a trial of either form."""
    return TrialConfig.model_validate(
        {
            "data": {
                "source": "digits",
                "image_size": options.image_size,
                "batch_size": options.batch,
            },
            "teacher": {"model": options.teacher, "checkpoint": "untrained", "cache": cache},
            "student": {"model": options.student},
            "distill": METHODS[options.method],
            "optim": {"lr": 0.01},
            "train": {"epochs": options.epochs, "precision": options.precision},
            "resources": {
                "gpus_per_worker": int(options.device == "cuda"),
                "cpus_per_worker": options.cpus,
            },
        }
    )


def trial(config: TrialConfig, folder: Path, weights: Path) -> tuple[list[EpochRecord], float]:
    """Its records, and the seconds until its first epoch ended."""
    found: list[EpochRecord] = []
    ends: list[float] = []

    def report(record: EpochRecord) -> None:
        found.append(record)
        ends.append(time.perf_counter())

    started = time.perf_counter()
    task = tasks.TrialTask(config, folder, weights)
    tasks.train(task, report, tasks.default_device(config))
    return found, ends[0] - started


def epoch_seconds(found: list[EpochRecord], pictures: int) -> float:
    """The median epoch's."""
    rates = [record.metrics[records.TRAIN_IMAGES_PER_SECOND] for record in found[1:]]
    return statistics.median(pictures / rate for rate in rates)


def numbers(found: list[EpochRecord]) -> list[dict[str, float]]:
    """All that follows from the config."""
    return [{k: v for k, v in r.metrics.items() if k not in OF_THE_MACHINE} for r in found]


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both forms, in turns."""
    forms = {"asked in every update": False, "asked once": True}
    data = tasks.inspect_data(config_of(options, cache=False))
    pictures = Pictures(len(data.classes), data.channels, data.image_size)
    torch.manual_seed(0)
    network = build_teacher_network(config_of(options, cache=False), pictures)
    save_weights(network.network, weights := folder / "teacher.safetensors")
    trial(config_of(options, cache=False), folder / "warm-up", weights)
    _, first = trial(config_of(options, cache=True), folder / "first", weights)
    times: dict[str, list[float]] = {name: [] for name in forms}
    until_first: list[float] = []
    told: list[list[dict[str, float]]] = []
    for number in range(options.rounds):
        for name, cache in forms.items():
            place = folder / f"{number} {name}"
            found, began = trial(config_of(options, cache=cache), place, weights)
            times[name].append(epoch_seconds(found, data.train))
            told.append(numbers(found))
            until_first += [began] if cache else []
    plain, once = times.values()
    ratios = [a / b for a, b in zip(plain, once, strict=True)]
    result = {
        "pictures": data.train,
        "epoch_s": {name: statistics.median(own) for name, own in times.items()},
        "gain": statistics.median(ratios),
        "gains": [min(ratios), max(ratios)],
        "asking_s": first - statistics.median(until_first),
        "equal": all(one == told[0] for one in told),
    }
    print(json.dumps(result, indent=1))
    return result


def main() -> None:
    """Measure, print, write."""
    is_cuda = torch.cuda.is_available()
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    command.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if is_cuda else "cpu")
    command.add_argument("--method", choices=METHODS, default="kd")
    command.add_argument("--teacher", default="mini_resnet_18_16")
    command.add_argument("--student", default="mini_resnet_10_16")
    command.add_argument("--image-size", type=int, default=8)
    command.add_argument("--precision", default="fp32")
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--epochs", type=int, default=6)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--cpus", type=int, default=os.cpu_count())
    command.add_argument("--output", type=Path, default=RESULTS)
    options = command.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KD_STUDY_CACHE"] = f"{folder}/cache"  # no file of an earlier run
        found = measured(options, Path(folder))
    where = environment()
    device = (where["gpus"] or ["cpu"])[0] if options.device == "cuda" else "cpu"
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    record = {"environment": where, "settings": settings, **found}
    path = options.output / f"teacher-cache-{device.replace(' ', '-').lower()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
