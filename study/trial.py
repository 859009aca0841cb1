"""A job → a training run, in Tune's own actor or in a group of workers under Ray Train."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ray import tune

from study.cluster import uses_torch_trainer
from study.config import StudyConfig
from study.fetching import bring
from study.group import ClosesGroup, lasting_group
from study.jobs import Job
from study.nodes import must_stay
from trainable import tasks
from trainable.records import VALUE, EpochRecord
from trainable.worker import Work, do_beside_others, shared_gpu

SCORES = "scores"
"""Key of a result of scoring: metrics by name."""


def run_job(drawn: dict[str, Any], study: StudyConfig, teacher_weights: Path | None) -> None:
    """Tune's trainable: run `drawn["job"]` of a study from its last checkpoint, or score its network."""
    # Tune reuses this process only if the thread of a stopped trial ends in time; 2 s is its default,
    # and where that fails it forgets the next trial without a word.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    must_stay()
    job = Job.from_dict(drawn["job"])
    if job.split is None:
        _do(_training(job, study, teacher_weights), study)
    else:
        scores = _do(_scoring(job, job.split, study, teacher_weights), study)
        tune.report({SCORES: scores, VALUE: 0.0})  # Tune wants a value of everything


# Ray's way to give the class that Tune makes of a function a method.
run_job.__mixins__ = (ClosesGroup,)  # pyright: ignore[reportFunctionMemberAccess]


def _do(work: Work, study: StudyConfig) -> Any:
    def report(record: EpochRecord) -> None:
        assert isinstance(work, tasks.TrialTask)
        tune.report(record.to_result(work.config.train.epochs))
        if record.epoch < work.config.train.epochs:  # its checkpoint is whole: nothing is lost here
            must_stay()

    if uses_torch_trainer(study):
        return lasting_group(study).do(work, report)
    device = tasks.default_device(study)
    if isinstance(work, tasks.TrialTask):
        return tasks.train(work, report, device, shared_gpu(study))
    return work(device)


def _training(job: Job, study: StudyConfig, teacher_weights: Path | None) -> tasks.TrialTask:
    config = job.config(study)
    weights = None
    if config.distill.method != "none" and teacher_weights is not None:
        weights = _here(teacher_weights, study)
    timed = job.role != "teacher" and study.study.looks_at("latency")
    return tasks.TrialTask(
        config, job.folder(study), weights, job.bucket(study), timed, until=job.until
    )


def _scoring(
    job: Job, split: Literal["val", "test"], study: StudyConfig, teacher_weights: Path | None
) -> Work:
    """Measures a job's network on a split."""
    network: Literal["student", "teacher"] = "student"
    if job.role == "teacher":
        assert teacher_weights is not None
        config, network, weights = study, "teacher", _here(teacher_weights, study)
    else:
        config, weights = job.config(study), tasks.best_weights(job.folder(study))
        bring(study, weights)
    score = partial(tasks.score_weights, config, network, weights, split)
    return partial(do_beside_others, study, f"scoring the {network} on {split}", score)


def _here(teacher_weights: Path, study: StudyConfig) -> Path:
    """The teacher's weights as this node has them; those that studies train are kept in the bucket, if there is one."""
    if study.bucket is None or not study.trains_teacher:
        return teacher_weights
    path = study.teachers / teacher_weights.name
    if not path.exists():  # named by what they were trained from: they never change
        bring(study, path)
    return path
