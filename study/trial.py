"""A job → a training run, in Tune's own actor or under Ray Train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from study.cluster import uses_torch_trainer, worker_resources
from study.config import StudyConfig
from study.jobs import Job
from trainable import tasks
from trainable.config import TrialConfig
from trainable.records import VALUE, EpochRecord
from trainable.worker import train_worker

SCORES = "scores"
"""Key of a result of scoring: metrics by name."""


def run_job(drawn: dict[str, Any], study: StudyConfig, teacher_weights: Path | None) -> None:
    """Tune's trainable: run `drawn["job"]` of a study from its last checkpoint, or score its network."""
    # Tune reuses this process only if the thread of a stopped trial ends in time; 2 s is its default,
    # and where that fails it forgets the next trial without a word.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    job = Job.from_dict(drawn["job"])
    if job.split is not None:
        metrics = _score(job, job.split, study, teacher_weights)
        tune.report({SCORES: metrics, VALUE: 0.0})  # Tune wants a value of everything
        return
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

    tasks.train(task, report, tasks.default_device(task.config))


def _run_workers(task: tasks.TrialTask, study: StudyConfig) -> None:
    """Train with a group of workers, placed beside this actor; their reports reach Tune."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend=_backend(task.config)),
        scaling_config=ScalingConfig(
            num_workers=task.config.train.workers,
            use_gpu=bool(task.config.resources.gpus_per_worker),
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


def _score(
    job: Job, split: Literal["val", "test"], study: StudyConfig, teacher_weights: Path | None
) -> dict[str, float]:
    """Metrics of a job's network on a split, in a process that has a worker's resources."""
    is_teacher = job.role == "teacher"
    config: Any = study if is_teacher else job.config(study)
    weights = teacher_weights if is_teacher else tasks.best_weights(job.folder(study))
    assert weights is not None
    network, device = "teacher" if is_teacher else "student", tasks.default_device(config)
    if not uses_torch_trainer(study):
        return tasks.score_weights(config, network, weights, split, device)
    need = worker_resources(study)
    remote = ray.remote(tasks.score_weights).options(
        num_cpus=need["CPU"], num_gpus=need.get("GPU", 0), scheduling_strategy="DEFAULT"
    )
    return ray.get(remote.remote(config, network, weights, split, device))


def _backend(config: TrialConfig) -> str:
    return "nccl" if config.resources.gpus_per_worker else "gloo"
