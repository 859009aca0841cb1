"""A study on a Ray cluster that is told of a GPU which is not there: its trials share it, and run on CPUs.

    python -m tests.integration.fake_gpu CONFIG [--unmeasurable]

A process of its own, since there is one Ray cluster a process. What a trial takes is made up, so that four share the
GPU; or it is to be measured, which fails. `network` finds no memory as often
as there are marks in the folder that `FULL` names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor, nn

FULL = "KD_STUDY_TEST_FULL"
IN_EPOCH_2 = 30
"""Of 17 updates an epoch."""
_took = False
"""Whether this process had a mark."""


class FindsNoMemory(nn.Module):
    """In a trial's second epoch, if it gets hold of a mark; not again where it is alone, in the same process."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    def forward(self, x: Tensor) -> Tensor:
        self.updates += self.training
        if self.updates == IN_EPOCH_2 and _takes_a_mark():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return x


def network(num_classes: int, in_channels: int) -> nn.Module:
    """A small one."""
    features = nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*features, FindsNoMemory(), nn.Flatten(), nn.Linear(512, num_classes))


def _takes_a_mark() -> bool:
    global _took
    for mark in () if _took else sorted(Path(os.environ[FULL]).glob("*")):
        try:
            mark.unlink()
        except FileNotFoundError:  # another trial was faster
            continue
        _took = True
        return True
    return False


def without_cuda() -> None:
    """In every process of the cluster: a trial that was given a GPU runs on the CPU."""
    from trainable import tasks

    tasks.default_device = lambda config: torch.device("cpu")  # type: ignore[assignment]


class Quiet:
    """A display that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.slots = 0

    def open(self, slots: int, ended: object) -> Quiet:
        self.slots = slots
        return self

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *error: object) -> None: ...
    def phase(self, text: str) -> None: ...
    def message(self, text: str) -> None:
        self.said.append(text)

    def trial_started(self, row: Any) -> None: ...
    def epoch(self, row: Any, record: Any, epochs_total: int) -> None: ...
    def trial_ended(self, row: Any) -> None: ...


def main() -> None:
    """Run the study, and print what was said and how many trials ran at a time."""
    from study import measuring
    from study.config import load_config
    from study.driver import run_study
    from trainable.tasks import Footprint

    without_cuda()
    if "--unmeasurable" not in sys.argv:
        footprint = Footprint(gib=9.0, gpu_gib=80.0, busy=0.25, filled=0.1, update_ms=4.0)
        measuring._measure = lambda trial, weights: (footprint, False)  # type: ignore[assignment]
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"worker_process_setup_hook": without_cuda},
    )
    config, display = load_config(Path(sys.argv[1])), Quiet()
    run_study(config, display.open)
    print(json.dumps({"slots": display.slots, "said": display.said}))


if __name__ == "__main__":
    main()
