"""Rules about the optimizer, the step, and the processes that run it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from trainable.config import TrialConfig
from trainable.errors import Problem
from trainable.methods import METHODS
from trainable.plan import schedule_of
from trainable.rules.rule import Rule


def _warmup_is_above_0_where_needed(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    schedule = schedule_of(config.distill, config.optim)
    if schedule in ("triangle", "onecycle") and config.optim.warmup_fraction == 0:
        rule = f"must be > 0 for {schedule}, which rises to its peak"
        remedy = "give a larger number, or set optim.schedule to cosine or multistep"
        yield Problem("optim.warmup_fraction", rule, remedy, "0")


def _milestones_are_those_of_multistep(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    path, given, epochs = "optim.milestones", config.optim.milestones, config.train.epochs
    schedule, got = schedule_of(config.distill, config.optim), str(list(given or ()))
    if schedule != "multistep" and given is not None:
        remedy = "remove it, or set optim.schedule to multistep"
        yield Problem(path, f"belongs to multistep, not to {schedule}", remedy, got)
    elif schedule == "multistep" and not given:
        remedy = "list the epochs after which to lower the learning rate, e.g. [60, 120, 160]"
        yield Problem(path, "multistep needs it", remedy, "nothing")
    elif given and any(earlier >= later for earlier, later in pairwise(given)):
        yield Problem(path, "must rise from each to the next", "sort them, each given once", got)
    elif given and given[-1] >= epochs:
        rule = f"must be < {epochs}, the epochs of training"
        yield Problem(path, rule, "train longer, or leave out those that come too late", got)


def _micro_batches_have_two_pictures(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    train, batch_size = config.train, config.data.batch_size
    smallest = 2 * train.workers * train.accumulate
    if batch_size < smallest:
        yield Problem(
            "data.batch_size",
            f"must be >= {smallest}, two pictures for each of {train.workers} worker(s) in each of "
            f"{train.accumulate} micro-batch(es)",
            "raise it, or lower train.workers or train.accumulate",
            str(batch_size),
        )


def _inline_has_one_worker(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    train = config.train
    if train.workers > 1 and train.launcher == "inline":
        rule = f"inline runs one worker, and train.workers is {train.workers}"
        yield Problem("train.launcher", rule, "set it to auto or torch_trainer", "'inline'")


def _gpus_can_be_given(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    gpus, workers = config.resources.gpus, config.train.workers
    path = "resources.gpus_per_worker"
    if gpus is None or gpus % 1 == 0:
        return
    if gpus > 1:
        yield Problem(path, "must be whole above 1", "use a whole number of GPUs", str(gpus))
    elif workers > 1:
        rule = f"NCCL needs a whole GPU for each of {workers} workers"
        remedy = "use 1 (or 0, for CPU workers), or train.workers: 1 to share a GPU"
        yield Problem(path, rule, remedy, str(gpus))


def _sobolev_has_plain_batchnorm(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    syncs = config.train.batchnorm.sync and config.train.workers > 1
    if METHODS[config.distill.method].slope and syncs:
        rule = f"{config.distill.method} differentiates twice, which SyncBatchNorm cannot"
        yield Problem("train.batchnorm.sync", rule, "set it to false", "true")


def _precision_has_a_gpu(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    precision = config.train.precision
    if config.resources.gpus == 0 and precision in ("fp16", "tf32"):
        rule, got = f"{precision} needs a GPU", f"'{precision}' with 0 GPUs a worker"
        yield Problem("train.precision", rule, "use fp32 or bf16 on CPUs", got)


def _teacher_can_have_its_precision(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    traits, train = METHODS[config.distill.method], config.train
    precision = None if config.teacher is None else config.teacher.precision
    if precision is None or not traits.teacher:
        return
    path, got = "teacher.precision", repr(precision)
    if traits.slope and precision != "fp32":
        rule = f"{config.distill.method} takes the slope of the teacher's answer in fp32"
        yield Problem(path, rule, "remove it, or choose another method", got)
    elif precision == "fp16" and config.resources.gpus == 0:
        rule, got = "fp16 needs a GPU", f"{got} with 0 GPUs a worker"
        yield Problem(path, rule, "use fp32 or bf16 on CPUs", got)
    elif precision == "fp32" and train.precision == "tf32":
        rule = "fp32 cannot be had beside train.precision: tf32, a setting of the whole process"
        yield Problem(path, rule, "remove it, or set train.precision to fp32", got)


def _loss_scale_is_above_its_floor(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    scale = config.train.loss_scale
    if scale.initial < scale.floor:
        rule = f"must be >= train.loss_scale.floor, which is {scale.floor:g}"
        remedy = "raise it, or lower the floor"
        yield Problem("train.loss_scale.initial", rule, remedy, f"{scale.initial:g}")


def _clip_by_has_a_bound(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    train = config.train
    if train.clip is None and train.clip_by != "norm":
        remedy = "give train.clip a number, or remove train.clip_by"
        yield Problem("train.clip_by", "needs train.clip", remedy, repr(train.clip_by))


def _recalibration_at_stages_is_on(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    norm = config.train.batchnorm
    if norm.recalibrate_at != "epoch" and not norm.recalibrate:
        remedy = "give train.batchnorm.recalibrate a number of updates, or remove it"
        path, rule = "train.batchnorm.recalibrate_at", "needs train.batchnorm.recalibrate"
        yield Problem(path, rule, remedy, repr(norm.recalibrate_at))


_BATCHNORM_ONLY = ("sync", "momentum", "eps", "freeze_after", "recalibrate")


def _group_norm_stands_alone(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    norm = config.train.batchnorm
    if norm.group_norm is None:
        return
    for name in _BATCHNORM_ONLY:
        value = getattr(norm, name)
        if value not in (None, False, 0):
            rule = "belongs to BatchNorm, which train.batchnorm.group_norm replaces"
            yield Problem(f"train.batchnorm.{name}", rule, "remove one of the two", str(value))


def _compiled_blocks_are_kept(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    if config.train.compile and config.train.activation_checkpointing:
        rule = "computes blocks in kernels that train.activation_checkpointing cannot repeat"
        yield Problem("train.compile", rule, "set one of the two to false", "true")


_METHOD, _WORKERS, _GPUS = "distill.method", "train.workers", "resources.gpus_per_worker"
_SCHEDULE = (_METHOD, "optim.schedule")
_RECALIBRATION = ("train.batchnorm.recalibrate", "train.batchnorm.recalibrate_at")
_GROUP_NORM = "train.batchnorm.group_norm"
_OF_BATCHNORM = tuple(f"train.batchnorm.{name}" for name in _BATCHNORM_ONLY)

RULES: tuple[Rule, ...] = (
    Rule((*_SCHEDULE, "optim.warmup_fraction"), _warmup_is_above_0_where_needed),
    Rule((*_SCHEDULE, "optim.milestones", "train.epochs"), _milestones_are_those_of_multistep),
    Rule(("data.batch_size", _WORKERS, "train.accumulate"), _micro_batches_have_two_pictures),
    Rule(("train.launcher", _WORKERS), _inline_has_one_worker),
    Rule((_GPUS, _WORKERS), _gpus_can_be_given),
    Rule((_METHOD, "train.batchnorm.sync", _WORKERS), _sobolev_has_plain_batchnorm),
    Rule((_GPUS, "train.precision"), _precision_has_a_gpu),
    Rule(
        (_METHOD, _GPUS, "teacher", "teacher.precision", "train.precision"),
        _teacher_can_have_its_precision,
    ),
    Rule(("train.loss_scale.initial", "train.loss_scale.floor"), _loss_scale_is_above_its_floor),
    Rule(("train.clip", "train.clip_by"), _clip_by_has_a_bound),
    Rule(("train.compile", "train.activation_checkpointing"), _compiled_blocks_are_kept),
    Rule(_RECALIBRATION, _recalibration_at_stages_is_on),
    Rule((_GROUP_NORM, *_OF_BATCHNORM), _group_norm_stands_alone),
)
