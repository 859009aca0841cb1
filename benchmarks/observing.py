"""What the statistics of gradients and updates cost a training step.

    python benchmarks/observing.py                       on a GPU, ResNet34 → ResNet18 in bf16
    python benchmarks/observing.py --device cpu          on CPUs, WRN-40-2 → WRN-16-2

A step of KD with `train.observe_every` at its default, and at 1, against one that observes nothing, on the same
pictures, in turns. What the non-finite guard needs of every gradient belongs to all three. Times are medians over
rounds, ratios those of the rounds' pairs. Written to benchmarks/results/observing-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from environment import environment

from trainable.config import DistillConfig, OptimConfig, TrainConfig, TrialConfig
from trainable.distill.objective import Objective, method_of
from trainable.engine.optimizers import build_optimizer
from trainable.engine.settings import apply_settings
from trainable.engine.step import Step
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.zoo import Pictures, build

RESULTS = Path(__file__).parent / "results"
CLASSES = 100
NEVER = 1_000_000
DEFAULT = TrainConfig().observe_every
FORMS = {"observes nothing": NEVER, "default": DEFAULT, "every update": 1}


class Training:
    """A student that learns from a teacher, on one batch of noise."""

    def __init__(self, options: argparse.Namespace, observe_every: int) -> None:
        device = torch.device(options.device)
        train = {"precision": options.precision, "observe_every": observe_every}
        self._step_config = TrainConfig.model_validate(train)
        student = _network(options.student, 0).to(device)
        method = method_of(DistillConfig(alpha=0.5), student, [])
        objective = Objective(student, method).to(device).train()
        self._teacher = FrozenTeacher(_network(options.teacher, 1)).to(device)
        images = torch.randn(options.batch, 3, 32, 32, device=device)
        if device.type == "cuda":
            objective.to(memory_format=torch.channels_last)
            self._teacher.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        self._images = images
        self._labels = torch.randint(0, CLASSES, (options.batch,), device=device)
        optimizer = build_optimizer(OptimConfig(lr=0.01), objective.parameters(), device)
        self._step = Step(objective, optimizer, self._step_config, device, classes=CLASSES)

    def seconds(self, updates: int) -> float:
        """A step's, with the flush at the end."""
        _wait()
        started = time.perf_counter()
        for _ in range(updates):
            with self._step.precision.forward():
                outputs = self._teacher(self._images)
            size = len(self._labels)
            self._step.accumulate(self._images, self._labels, outputs, update_size=size, last=True)
            self._step.finish(0.01)
        self._step.observed.flush()
        _wait()
        return (time.perf_counter() - started) / updates


def main() -> None:
    """Measure, print, write."""
    options = parser().parse_args()
    cpus = torch.get_num_threads()
    tree = {"data": {"source": "digits"}, "student": {"model": options.student}}
    train = {"precision": options.precision}
    apply_settings(
        TrialConfig.model_validate({**tree, "train": train, "resources": {"cpus_per_worker": cpus}})
    )
    forms = {name: Training(options, every) for name, every in FORMS.items()}
    for training in forms.values():
        training.seconds(options.updates)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, training in forms.items():
            times[name].append(training.seconds(options.updates))
    nothing = times["observes nothing"]
    found: dict[str, Any] = {}
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, nothing, strict=True)]
        found[name] = {
            "step_ms": 1000 * statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "ratios": [min(ratios), max(ratios)],
        }
        print(f"{name:<18} {found[name]['step_ms']:8.2f} ms a step   {found[name]['ratio']:.4f}×")
    where = environment()
    device = (where["gpus"] or ["cpu"])[0] if options.device == "cuda" else "cpu"
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    record = {"environment": where, "settings": settings, "observe_every": FORMS, "forms": found}
    path = options.output / f"observing-{device.replace(' ', '-').lower()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


def parser() -> argparse.ArgumentParser:
    """The command's options; networks and sizes that suit the device unless they are given."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    is_cuda = torch.cuda.is_available()
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if is_cuda else "cpu")
    made.add_argument("--student", default="resnet18" if is_cuda else "wrn_16_2")
    made.add_argument("--teacher", default="resnet34" if is_cuda else "wrn_40_2")
    made.add_argument("--precision", default="bf16" if is_cuda else "fp32")
    made.add_argument("--batch", type=int, default=128 if is_cuda else 64)
    made.add_argument("--updates", type=int, default=5 * DEFAULT, help="a round's")
    made.add_argument("--rounds", type=int, default=9 if is_cuda else 5)
    made.add_argument("--output", type=Path, default=RESULTS)
    return made


def _network(name: str, seed: int) -> BlockNetwork:
    torch.manual_seed(seed)
    built = build(name, Pictures(CLASSES, 3, (32, 32)), path="student.model")
    return BlockNetwork(built.network, built.cuts)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
