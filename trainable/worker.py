"""The loop as a worker of Ray Train."""

from __future__ import annotations

import traceback
from typing import Any

import ray.train
import ray.train.torch

from trainable.engine.loop import TrialTask, run
from trainable.records import EpochRecord


def train_worker(settings: dict[str, Any]) -> None:
    """Train loop of each worker: run `settings["task"]` on the device that Ray Train chose."""
    task: TrialTask = settings["task"]

    def report(record: EpochRecord) -> None:
        ray.train.report(record.to_result(task.config.train.epochs))

    try:
        run(task, report, ray.train.torch.get_device())
    except Exception as error:
        error.add_note(traceback.format_exc())  # Ray passes a thousand characters of it on
        raise
