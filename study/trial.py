"""A job → a training run, in Tune's own actor or under Ray Train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray import tune
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from study.cluster import uses_torch_trainer, worker_resources
from study.config import StudyConfig
from study.jobs import Job
from trainable import tasks
from trainable.config import TrialConfig
from trainable.records import EpochRecord
from trainable.worker import shared_gpu, train_worker


def run_job(drawn: dict[str, Any], study: StudyConfig, teacher_weights: Path | None) -> None:
    """Tune's trainable: run `drawn["job"]` of a study from its last checkpoint."""
    # Tune reuses this process only if the thread of a stopped trial ends in time; 2 s is its default,
    # and where that fails it forgets the next trial without a word.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    job = Job.from_dict(drawn["job"])
    config = job.config(study)
    weights = teacher_weights if config.distill.method != "none" else None
    task = tasks.TrialTask(config, job.folder(study), weights)
    if uses_torch_trainer(config):
        _run_workers(task, study)
    else:
        _run_inline(task)


def _run_inline(task: tasks.TrialTask) -> None:
    def report(record: EpochRecord) -> None:
        tune.report(record.to_result(task.config.train.epochs))

    device, shared = tasks.default_device(task.config), shared_gpu(task.config)
    tasks.train(task, report, device, shared)


def _run_workers(task: tasks.TrialTask, study: StudyConfig) -> None:
    """Train with a group of workers, placed beside this actor; their reports reach Tune."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend=_backend(task.config)),
        scaling_config=ScalingConfig(
            num_workers=task.config.train.workers,
            use_gpu=bool(task.config.resources.gpus),
            resources_per_worker=worker_resources(task.config),
        ),
        run_config=RunConfig(
            name=task.folder.name,
            storage_path=str(study.folder / "ray" / "workers"),
            callbacks=[TuneReportCallback()],
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        failures = sorted(error.worker_failures.items(), reverse=True)  # rank 0 has the last word
        told = [note for _, failure in failures for note in getattr(failure, "__notes__", ())]
        if not told:
            raise
        raise WorkerGroupError("\n".join(told), error.worker_failures) from None


def _backend(config: TrialConfig) -> str:
    return "nccl" if config.resources.gpus else "gloo"
