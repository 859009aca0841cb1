"""The loop under Ray: as a worker of Ray Train, and on a GPU that Ray has several trials share."""

from __future__ import annotations

import traceback
from typing import Any

import ray
import ray.train
import ray.train.torch

from trainable.config import TrialConfig
from trainable.engine.loop import TrialTask
from trainable.engine.neighbours import SharedGpu, run_on
from trainable.records import EpochRecord


def train_worker(settings: dict[str, Any]) -> None:
    """Train loop of each worker: run `settings["task"]` on the device that Ray Train chose."""
    task: TrialTask = settings["task"]

    def report(record: EpochRecord) -> None:
        ray.train.report(record.to_result(task.config.train.epochs))

    try:
        run_on(shared_gpu(task.config), task, report, ray.train.torch.get_device())
    except Exception as error:
        error.add_note(traceback.format_exc())  # Ray passes a thousand characters of it on
        raise


def shared_gpu(config: TrialConfig) -> SharedGpu | None:
    """The GPU that this Ray worker was given a fraction of; None where it has whole ones, or none."""
    gpus = config.resources.gpus
    if not gpus or gpus >= 1:
        return None
    (number,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return SharedGpu(f"gpu-{number}")
