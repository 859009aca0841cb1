"""Short real trials on digits, healthy and sick, whose metrics the rules of the diagnosis are held against.

`make recorded-runs` trains them with the product's own loop and keeps what they report under `recorded/`. What
is sick was made so by its config, as a person's would be. The numbers are of one machine: others round in
another way, and a sick run grows what rounding does. So the tests read them, and train only a few anew.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.trainable.trials import CPU
from trainable import records
from trainable.config import TrialConfig
from trainable.engine.checkpoint import BEST
from trainable.engine.loop import TrialTask, run
from trainable.errors import TrainingError
from trainable.records import EpochRecord

RECORDED = Path(__file__).resolve().parent / "recorded"
_DIGITS = 5
"""Significant digits that are kept."""
OF_THE_MACHINE = (
    records.TRAIN_IMAGES_PER_SECOND,
    records.TRAIN_SECONDS,
    records.TRAIN_PEAK_MEMORY,
)
"""Metrics that are not kept."""

BASE: dict[str, Any] = {
    "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 64},
    "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "none"},
    "optim": {"lr": 0.05},
    "train": {"epochs": 12},
    "resources": {"gpus_per_worker": 0},
}
KD = {"method": "kd", "alpha": 0.5}
IMBALANCED = {"source": "image_folder", "root": "imbalanced", "sampling": "balanced"}
"""Ten classes, each with three quarters of the pictures of the one before; `root` is given at training."""


@dataclass(frozen=True)
class Run:
    """A trial, and what there is to find in it."""

    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What differs from `BASE`."""
    finds: frozenset[str] = frozenset()
    """Names of the findings, all of them; none in a healthy trial."""
    stop_after: int | None = None
    """Epoch after which it is pruned."""

    @property
    def config(self) -> TrialConfig:
        return TrialConfig.model_validate(
            {**BASE, **{n: {**BASE.get(n, {}), **s} for n, s in self.sections.items()}}
        )


def stablekd(decomposition: str) -> dict[str, Any]:
    return {"method": "stablekd", "alpha": 0.5, "decomposition": decomposition}


HEALTHY: dict[str, Run] = {
    "none": Run(),
    "kd": Run({"distill": KD}),
    "kd_mse": Run({"distill": {**KD, "method": "kd_mse"}}),
    "stablekd-5-2": Run({"distill": stablekd("5/2"), "optim": {"lr": 0.1}}),
    "stablekd-3-1": Run({"distill": stablekd("3/1"), "optim": {"lr": 0.1}}),
    "stablekd-5-3-slow": Run({"distill": stablekd("5/3"), "optim": {"lr": 0.016}}),
    "adamw": Run({"distill": KD, "optim": {"name": "adamw", "lr": 3e-3}}),
    "clipped-at-times": Run({"train": {"epochs": 12, "clip": 1.5}}),
    "pruned-in-warm-up": Run({"distill": KD, "train": {"epochs": 40}}, stop_after=4),
    "one-epoch": Run({"train": {"epochs": 1}}),
    "few-updates": Run({"data": {"batch_size": 256}, "optim": {"lr": 0.1}}),
    "bold": Run({"optim": {"lr": 1.0}}),
    "group-norm": Run({"train": {"epochs": 12, "batchnorm": {"group_norm": 2}}}),
    "without-validation": Run({"data": {"val_fraction": 0}}),
    "balanced": Run({"data": IMBALANCED, "optim": {"lr": 0.05}, "train": {"epochs": 20}}),
}
HASTY = {
    "name": "adamw",
    "lr": 0.2,
    "weight_decay": 0.5,
    "schedule": "multistep",
    "milestones": [14],
}
"""Adam far too fast, with a weight decay that pulls at what has no gradient any more."""
SICK: dict[str, Run] = {
    "lr-50": Run(
        {"optim": {"lr": 50.0}},
        frozenset({"exploding_gradients", "lr_too_high", "non_finite"}),
    ),
    "lr-5": Run({"optim": {"lr": 5.0}}, frozenset({"lr_too_high"})),
    "lr-1e-6": Run({"optim": {"lr": 1e-6}}, frozenset({"lr_too_low"})),
    "logits-of-1e38": Run(
        {
            "student": {"head": {"name": "am_softmax", "scale": 1e38}},
            "train": {"epochs": 3, "max_skipped": 1000},
        },
        frozenset({"non_finite"}),
    ),
    "clip-1e-4": Run({"train": {"epochs": 12, "clip": 1e-4}}, frozenset({"always_clipped"})),
    "clip-1000": Run({"train": {"epochs": 12, "clip": 1000.0}}, frozenset({"never_clipped"})),
    "sigmoids": Run(
        {
            "student": {
                "model": "tests.trainable.recorded_runs:sigmoids",
                "cuts": ["block1", "block2", "block3", "block4"],
            }
        },
        frozenset({"vanishing_gradients"}),
    ),
    "running-means-of-1000-batches": Run(
        {"train": {"epochs": 8, "batchnorm": {"momentum": 0.001}}}, frozenset({"batchnorm_drift"})
    ),
    "dying-channels": Run(
        {"optim": HASTY, "train": {"epochs": 18}}, frozenset({"batchnorm_drift", "dead_channels"})
    ),
    "dying-channels-balanced": Run(
        {
            "data": {**IMBALANCED, "batch_size": 24},
            "optim": {**HASTY, "lr": 0.1, "weight_decay": 1.0},
            "train": {"epochs": 18},
        },
        frozenset({"batchnorm_drift", "dead_channels"}),
    ),
    # fp16 on a CPU, which `rules.problems` refuses as useless; the loop and the scaler are the same.
    "fp16-overflow": Run(
        {
            "data": {"val_fraction": 0.75},
            "distill": {**KD, "method": "kd_mse", "feature_weights": {"layer4": 1e6}},
            "train": {"epochs": 4, "precision": "fp16"},
        },
        frozenset({"scale_collapse"}),
    ),
    "one-process-decodes": Run(
        {
            "data": {
                "decode_workers": 0,
                "augment": {"rand_augment": {"operations": 8}, "resized_crop": [0.5, 1.0]},
            },
            "train": {"epochs": 3},
        },
        frozenset({"data_bound"}),
    ),
}
RUNS = HEALTHY | SICK


def sigmoids(num_classes: int, in_channels: int) -> torch.nn.Module:
    """Eight convolutions with sigmoids and nothing that helps a gradient through them."""

    def block(channels: int) -> torch.nn.Module:
        first = torch.nn.Conv2d(channels, 4, 3, padding=1)
        second = torch.nn.Conv2d(4, 4, 3, padding=1)
        return torch.nn.Sequential(first, torch.nn.Sigmoid(), second, torch.nn.Sigmoid())

    network = torch.nn.Sequential()
    for number, channels in enumerate((in_channels, 4, 4, 4), start=1):
        network.add_module(f"block{number}", block(channels))
    network.add_module("pool", torch.nn.AdaptiveAvgPool2d(1))
    network.add_module("flat", torch.nn.Flatten())
    network.add_module("fc", torch.nn.Linear(4, num_classes))
    return network


def imbalanced_digits(root: Path) -> Path:
    """The digits as an image folder: of each class three quarters as many as of the one before."""
    bunch = load_digits()
    for label in range(10):
        rows = np.flatnonzero(bunch.target == label)
        kept = rows[: round(140 * 0.75**label)]
        for split, own in (("train", kept), ("test", rows[-10:])):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for row in own:
                pixels = np.minimum(bunch.images[row] * 16, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{row}.png")
    return root


def trained(config: TrialConfig, folder: Path, stop_after: int | None = None) -> list[EpochRecord]:
    """Train, and a teacher before if there has to be one; what was reported until it ended or failed."""
    if config.data.source == "image_folder":
        root = imbalanced_digits(folder / "pictures")
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"root": str(root)})}
        )
    teacher = None
    if config.distill.method != "none":
        run(TrialTask(Run({"train": {"epochs": 8}}).config, folder / "teacher", None), _ignore, CPU)
        teacher = folder / "teacher" / BEST
    found: list[EpochRecord] = []

    def report(record: EpochRecord) -> None:
        found.append(record)
        if record.epoch == stop_after:
            raise _PrunedError

    with suppress(_PrunedError, TrainingError):
        run(TrialTask(config, folder / "trial", teacher), report, CPU)
    return found


class _PrunedError(Exception):
    pass


def _ignore(record: EpochRecord) -> None:
    del record


def recorded(name: str) -> tuple[EpochRecord, ...]:
    """What a run reported."""
    columns = json.loads((RECORDED / f"{name}.json").read_text("utf-8"))
    rows = zip(*columns.values(), strict=True)
    return tuple(
        EpochRecord(
            epoch,
            {n: value for n, value in zip(columns, row, strict=True) if value is not None},
            epoch,
        )
        for epoch, row in enumerate(rows, start=1)
    )


def write() -> None:
    """Train all runs anew."""
    torch.set_num_threads(1)
    RECORDED.mkdir(exist_ok=True)
    for name, recipe in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["KD_STUDY_CACHE"] = folder
            found = trained(recipe.config, Path(folder), recipe.stop_after)
        names = sorted({n for r in found for n in r.metrics if n not in OF_THE_MACHINE})
        columns = {n: [_rounded(r.metrics.get(n)) for r in found] for n in names}
        lines = ",\n".join(
            f" {json.dumps(n)}: {json.dumps(column)}" for n, column in columns.items()
        )
        (RECORDED / f"{name}.json").write_text(f"{{\n{lines}\n}}\n", "utf-8")
        print(f"{name}: {len(found)} epochs")


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


if __name__ == "__main__":
    write()
