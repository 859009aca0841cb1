"""Twenty updates on digits, number by number: what nobody meant to change has not changed.

`make golden` writes the files that this compares with. Do that only after a change that is meant to change
the numbers, and say in the commit why.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import safetensors.torch
import torch

from trainable.config import TrialConfig
from trainable.engine import loop
from trainable.engine.checkpoint import CHECKPOINTS
from trainable.engine.loop import TrialTask, run
from trainable.engine.step import NORM, SAMPLES, UPDATES, Step
from trainable.networks.build import Pictures, build_teacher_network
from trainable.networks.weights import save_weights

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TOLERANCE, OF_GRADIENTS = 1e-4, 1e-2
"""Relative; the second is of gradient norms, and of biases, which begin at 0 and are made of gradients.

Other CPUs and releases of torch sum in another order. Between kernels for SSE4.1, AVX2 and AVX-512 most numbers
differed by 1e-6 or less: a small learning rate lets no rounding grow. But where an activation is within rounding
of 0, ReLU's gradient is either 0 or 1, in all dark pixels of the digits at once: that moved gradient norms by up
to 7e-4 and, through the weights, loss terms by up to 3e-6. Whatever the last test changes moves more."""

Numbers = dict[str, dict[str, Any]]
TREE: dict[str, Any] = {
    "data": {
        "source": "digits",
        "val_fraction": 0.25,
        "batch_size": 216,
        "augment": {"crop": 1, "flip": True},
    },
    "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
    "student": {"model": "mini_resnet_10_4"},
    "optim": {"lr": 0.001},
    "train": {"epochs": 4, "accumulate": 2},
    "resources": {"gpus_per_worker": 0},
}
CASES: dict[str, dict[str, Any]] = {
    "kd": {"distill": {"method": "kd", "alpha": 0.5, "temperature": 2.0}},
    "stablekd": {"distill": {"method": "stablekd", "alpha": 0.5, "decomposition": "5/2"}},
}
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "weight of the distillation term": ("kd", {"distill.alpha": 0.51}),
    "temperature": ("kd", {"distill.temperature": 2.05}),
    "weight of StableKD's distillation term": ("stablekd", {"distill.alpha": 0.51}),
    "learning rate": ("kd", {"optim.lr": 0.00102}),
    "schedule": ("kd", {"optim.schedule": "triangle"}),
    "decay of the peaks": ("stablekd", {"optim.peak_decay": 0.55}),
    "weight decay": ("kd", {"optim.weight_decay": 0.01}),
    "crops": ("kd", {"data.augment.crop": 0}),
    "flips": ("kd", {"data.augment.flip": False}),
    "BatchNorm's momentum": ("kd", {"train.batchnorm.momentum": 0.105}),
}


class WatchedStep(Step):
    """A step that keeps the loss terms and the gradient norm of every update."""

    seen: tuple[list[dict[str, float]], ...] = ()

    def finish(self, lr: float) -> None:
        before = self._sums()
        super().finish(lr)
        now = {name: value - before.get(name, 0.0) for name, value in self._sums().items()}
        samples = now.pop(SAMPLES)
        assert now.pop(UPDATES) == 1
        norm = now.pop(NORM)
        terms = {name: value / samples for name, value in now.items() if name.startswith("train/")}
        self.seen[0].append({**terms, "grad/norm": norm, "lr": lr})

    def _sums(self) -> dict[str, float]:
        states = [totals.state_dict() for totals in (self.losses, self.gradients)]
        return {
            name: value
            for state in states
            for name, value in zip(state["names"], state["sums"].tolist(), strict=True)
        }


def changed(tree: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {**tree, name: changed(tree.get(name, {}), rest, value) if rest else value}


def rounded(number: float) -> float:
    return float(f"{number:.9g}")


def measure(case: str, folder: Path, changes: Mapping[str, Any]) -> Numbers:
    """Train a case and give its numbers."""
    tree = {**TREE, **CASES[case]}
    for path, value in changes.items():
        tree = changed(tree, path, value)
    config = TrialConfig.model_validate(tree)
    torch.manual_seed(7)
    teacher = build_teacher_network(config, Pictures(10, 3, (8, 8)))
    save_weights(teacher.network, folder / "teacher.safetensors")
    updates: list[dict[str, float]] = []
    with patch.object(loop, "Step", WatchedStep), patch.object(WatchedStep, "seen", (updates,)):
        task = TrialTask(config, folder / case, folder / "teacher.safetensors")
        run(task, lambda record: None, torch.device("cpu"))
    last = max((folder / case / CHECKPOINTS).iterdir())
    tensors = safetensors.torch.load_file(last / "student.safetensors")
    norms = {name: rounded(float(tensors[name].double().norm())) for name in sorted(tensors)}
    by_term = {name: [rounded(update[name]) for update in updates] for name in updates[0]}
    return {"updates": by_term, "norms": norms}


def flat(numbers: Numbers) -> dict[str, float]:
    """Every number by its place."""
    updates = {
        f"{name} of update {number}": value
        for name, values in numbers["updates"].items()
        for number, value in enumerate(values, start=1)
    }
    return {**updates, **numbers["norms"]}


def outside(ours: Numbers, theirs: Numbers) -> dict[str, tuple[float, float]]:
    """The numbers that differ by more than the tolerance."""
    one, other = flat(ours), flat(theirs)
    assert one.keys() == other.keys()
    return {
        place: (one[place], value)
        for place, value in other.items()
        if not math.isclose(one[place], value, rel_tol=tolerance_of(place))
    }


def tolerance_of(place: str) -> float:
    return OF_GRADIENTS if "grad/norm" in place or place.endswith(".bias") else TOLERANCE


def golden(case: str) -> Numbers:
    return json.loads((GOLDEN / f"{case}.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES)
def test_nothing_has_changed(case: str, tmp_path: Path) -> None:
    numbers = measure(case, tmp_path, {})
    assert all(len(values) == 20 for values in numbers["updates"].values())
    assert outside(numbers, golden(case)) == {}


@pytest.mark.parametrize(("case", "changes"), CHANGES.values(), ids=CHANGES)
def test_a_small_change_would_be_seen(case: str, changes: dict[str, Any], tmp_path: Path) -> None:
    assert outside(measure(case, tmp_path, changes), golden(case)) != {}


def write() -> None:
    """Make the golden files anew."""
    torch.set_num_threads(1)
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["KD_STUDY_CACHE"] = folder
            numbers = measure(case, Path(folder), {})
        text = json.dumps(numbers, indent=1)
        (GOLDEN / f"{case}.json").write_text(text + "\n", "utf-8")
        print(f"wrote {GOLDEN / case}.json")


if __name__ == "__main__":
    write()
