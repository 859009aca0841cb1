"""What must hold between the keys of a trial; rules about one key alone are on its field.

Every rule names the keys that it reads. So validation can leave out the rules that read a wrong value,
and try every combination of searched values that a rule can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

from trainable.config import TrialConfig
from trainable.errors import Problem
from trainable.methods import METHODS, MethodName, readers
from trainable.plan import Decomposition, largest_n, schedule_of

Check = Callable[[TrialConfig, int | None], Iterator[Problem]]
"""(trial, blocks of its networks, if known) → what is wrong."""


@dataclass(frozen=True)
class Rule:
    """One thing that must hold."""

    reads: tuple[str, ...]
    """Dotted paths of every key that the rule depends on."""
    check: Check

    def reads_any(self, paths: Collection[str]) -> bool:
        """Whether it reads one of these keys, or a key of one of these sections."""
        return any(
            read == path or read.startswith(f"{path}.") for read in self.reads for path in paths
        )


def problems(
    config: TrialConfig, blocks: int | None = None, unknown: Collection[str] = ()
) -> list[Problem]:
    """All that is wrong between the keys of a trial; rules that read an `unknown` key are left out."""
    rules = [rule for rule in RULES if not rule.reads_any(unknown)]
    return [problem for rule in rules for problem in rule.check(config, blocks)]


def _teacher_is_named(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    if config.teacher is None and METHODS[config.distill.method].teacher:
        yield Problem(
            "teacher",
            f"distill.method {config.distill.method} needs a teacher",
            "name teacher.model, with teacher.checkpoint or teacher.train",
        )


def _teacher_has_weights(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    teacher = config.teacher
    if teacher is None or (teacher.checkpoint is None) != (teacher.train is None):
        return
    both = teacher.checkpoint is not None
    yield Problem(
        "teacher",
        "must have exactly one of checkpoint and train",
        "remove one" if both else "give a file to load, or epochs to train for",
        "both" if both else "neither",
    )


def _alpha_is_that_of_the_method(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    method, alpha = config.distill.method, config.distill.alpha
    yield from _weight_problems("alpha", alpha, method, "a number from 0 to 1, e.g. 0.5")


def _lam_is_that_of_the_method(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    method, lam = config.distill.method, config.distill.lam
    yield from _weight_problems("lam", lam, method, "a number >= 0, e.g. 1.0")


def _weight_problems(
    key: str, value: float | None, method: MethodName, example: str
) -> Iterator[Problem]:
    traits = METHODS[method]
    if key in traits.needs and value is None:
        yield Problem(
            f"distill.{key}", f"{method} needs it: {traits.loss}", f"give {example}", "nothing"
        )
    elif traits.teacher and key not in traits.weights and value is not None:
        remedy = "remove it, or set distill.method to one of them"
        yield Problem(f"distill.{key}", _belongs(key, method), remedy, str(value))


def _belongs(key: str, method: MethodName) -> str:
    *others, last = readers(key)
    return f"belongs to {', '.join(others)} and {last}, not to {method}"


def _feature_weights_have_features(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    distill = config.distill
    if distill.feature_weights is not None and distill.method not in readers("feature_weights"):
        rule = _belongs("feature_weights", distill.method)
        remedy = "remove it, or set distill.method to one of them"
        yield Problem("distill.feature_weights", rule, remedy)
    elif distill.feature_weights is not None and not any(distill.feature_weights.values()):
        rule, remedy = (
            "must weigh a cut above 0",
            "raise a weight, or set distill.method to kd or none",
        )
        yield Problem("distill.feature_weights", rule, remedy, str(distill.feature_weights))


def _stablekd_has_one_weight(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    distill = config.distill
    if distill.method == "stablekd" and (distill.alpha is None) == (distill.lam is None):
        both = distill.alpha is not None
        yield Problem(
            "distill",
            "stablekd needs exactly one of lam (CE + λ·T²·KL) and alpha ((1 − α)·CE + α·T²·KL)",
            "remove one" if both else "set one, e.g. lam: 1.0",
            "both" if both else "neither",
        )


def _decomposition_is_possible(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    path, text = "distill.decomposition", config.distill.decomposition
    if config.distill.method != "stablekd":
        return
    if text is None:
        yield Problem(path, "stablekd needs it", "write k/n, e.g. 5/2", "nothing")
        return
    part = Decomposition.parse(text)
    if part.k < 1:
        yield Problem(path, "k >= 1 must hold", "k = 1 is one group, which is vanilla KD", text)
    elif part.n > (largest := largest_n(part.k)):
        rule = f"n <= {largest} must hold for k = {part.k}, since ⌈log₂ k⌉ recompositions leave one group"
        yield Problem(path, rule, f"write {part.k}/{largest} or a smaller n", text)


def _groups_have_blocks(config: TrialConfig, blocks: int | None) -> Iterator[Problem]:
    text = config.distill.decomposition
    if config.distill.method != "stablekd" or text is None or blocks is None:
        return
    if Decomposition.parse(text).k > blocks:
        rule = (
            f"k <= {blocks} must hold for {config.student.model}, which is cut into {blocks} blocks"
        )
        remedy = "choose a smaller k, or cut the networks at more places (student.cuts)"
        yield Problem("distill.decomposition", rule, remedy, text)


def _stages_have_epochs(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    distill, epochs, path = config.distill, config.train.epochs, "distill.stage_epochs"
    if distill.method != "stablekd" or distill.decomposition is None:
        return
    part, given = Decomposition.parse(distill.decomposition), distill.stage_epochs
    if part.k < 1 or part.n > largest_n(part.k):
        return  # no stages to speak of
    if given is None and epochs <= part.n:
        rule = f"must be >= {part.n + 1}, one for each stage of {part}"
        yield Problem("train.epochs", rule, "train longer, or recompose less often", str(epochs))
    elif given is not None and len(given) != part.n + 1:
        rule = f"must have {part.n + 1} number(s), one for each stage of {part}"
        remedy = "give each stage its epochs, choose a k/n with as many stages, or remove it"
        yield Problem(path, rule, remedy, str(list(given)))
    elif given is not None and sum(given) != epochs:
        rule, got = f"must add up to {epochs}, which is train.epochs", f"{list(given)}"
        yield Problem(path, rule, "change one of the two, or remove it", f"{got} = {sum(given)}")


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
    gpus, workers = config.resources.gpus_per_worker, config.train.workers
    path = "resources.gpus_per_worker"
    if gpus is None or gpus % 1 == 0:
        return
    if gpus > 1:
        yield Problem(path, "must be whole above 1", "use a whole number of GPUs", str(gpus))
    elif workers > 1:
        rule = f"NCCL needs a whole GPU for each of {workers} workers"
        remedy = "use 1 (or 0, for CPU workers), or train.workers: 1 to share a GPU"
        yield Problem(path, rule, remedy, str(gpus))


def _sync_batchnorm_has_gpus(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    if config.resources.gpus_per_worker == 0 and config.train.batchnorm.sync:
        remedy = "set it to false, or give the workers GPUs"
        got = "true with 0 GPUs a worker"
        yield Problem("train.batchnorm.sync", "SyncBatchNorm runs on GPUs only", remedy, got)


def _sobolev_has_plain_batchnorm(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    if METHODS[config.distill.method].slope and config.train.batchnorm.sync:
        rule = f"{config.distill.method} differentiates twice, which SyncBatchNorm cannot"
        yield Problem("train.batchnorm.sync", rule, "set it to false", "true")


def _precision_has_a_gpu(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    precision = config.train.precision
    if config.resources.gpus_per_worker == 0 and precision in ("fp16", "tf32"):
        rule, got = f"{precision} needs a GPU", f"'{precision}' with 0 GPUs a worker"
        yield Problem("train.precision", rule, "use fp32 or bf16 on CPUs", got)


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


def _projectors_have_a_teacher(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    projectors = config.student.projectors
    if projectors != "none" and config.teacher is None:
        rule = "needs a teacher, whose widths they lead to"
        remedy = "name teacher.model, or remove it"
        yield Problem("student.projectors", rule, remedy, repr(projectors))


def _margin_has_its_head(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    heads = {"student": config.student.head}
    if config.teacher is not None:
        heads["teacher"] = config.teacher.head
    for network, head in heads.items():
        for name, value in (("margin", head.margin), ("scale", head.scale)):
            if head.name != "am_softmax" and value is not None:
                rule = f"belongs to am_softmax, not to {head.name}"
                remedy = f"remove it, or set {network}.head.name to am_softmax"
                yield Problem(f"{network}.head.{name}", rule, remedy, f"{value:g}")


def _root_where_needed(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    data = config.data
    if data.source == "digits" and data.root is not None:
        yield Problem("data.root", "digits needs no folder", "remove it", repr(data.root))
    elif data.source != "digits" and data.root is None:
        rule = f"{data.source} needs a folder"
        yield Problem("data.root", rule, "name where its files are", "nothing")


def _moments_fit_channels(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    data = config.data
    for name, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and len(values) != data.channels:
            rule = f"must have {data.channels} value(s), one a channel"
            remedy = "give one value for each of data.channels"
            yield Problem(f"data.{name}", rule, remedy, str(list(values)))


def _mean_is_finite(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    mean = config.data.mean
    if mean is not None and not all(math.isfinite(value) for value in mean):
        remedy = "give each channel's mean of pixels in [0, 1], or remove it to measure it"
        yield Problem("data.mean", "must be finite", remedy, str(list(mean)))


def _resize_leaves_the_centre(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    data = config.data
    if data.resize is None:
        return
    if data.image_size is None:
        remedy = "give data.image_size the side to crop, or remove it"
        yield Problem("data.resize", "needs data.image_size", remedy, str(data.resize))
    elif data.resize < data.image_size:
        rule = f"must be >= data.image_size, which is {data.image_size}"
        yield Problem("data.resize", rule, "raise it, or lower data.image_size", str(data.resize))


def _crop_areas_are_in_order(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    areas = config.data.augment.resized_crop
    if areas is not None and areas[0] > areas[1]:
        rule, remedy = "must be the smallest and the largest share", "exchange them"
        yield Problem("data.augment.resized_crop", rule, remedy, str(list(areas)))


def _resident_pictures_change_together(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    augment = config.data.augment
    used = [name for name in _SINGLE if getattr(augment, name) not in (None, 0.0)]
    if used and config.data.loader == "resident":
        rule = f"data.augment.{used[0]} changes pictures one by one as they are decoded"
        yield Problem("data.loader", rule, "set it to auto or streamed", "'resident'")


def _mixed_labels_can_be_learnt(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    augment, teacher = config.data.augment, config.teacher
    networks = {"student": config.student.head}
    if teacher is not None and teacher.train is not None:
        networks["teacher"] = teacher.head
    for name, alpha in (("mixup", augment.mixup), ("cutmix", augment.cutmix)):
        if alpha is None:
            continue
        path, rule = f"data.augment.{name}", "gives a picture the labels of two,"
        if config.distill.method in _OF_ONE_CLASS:
            need = f"{rule} and {config.distill.method} needs one"
            yield Problem(path, need, "remove it, or choose another method", f"{alpha:g}")
        for network, head in networks.items():
            if head.name == "am_softmax":
                need = f"{rule} and the margin of {network}.head needs one"
                remedy = f"remove it, or set {network}.head.name to linear"
                yield Problem(path, need, remedy, f"{alpha:g}")


_OF_ONE_CLASS: tuple[MethodName, ...] = ("dkd",)
"""Methods whose formula needs the one class of each picture."""
_SINGLE = ("resized_crop", "rand_augment", "erase")
_METHOD, _WORKERS, _GPUS = "distill.method", "train.workers", "resources.gpus_per_worker"
_SCHEDULE = (_METHOD, "optim.schedule")
_RECALIBRATION = ("train.batchnorm.recalibrate", "train.batchnorm.recalibrate_at")
_GROUP_NORM = "train.batchnorm.group_norm"
_OF_BATCHNORM = tuple(f"train.batchnorm.{name}" for name in _BATCHNORM_ONLY)
_HEADS = ("student.head.name", "teacher", "teacher.head.name", "teacher.train")
_MARGINS = tuple(
    f"{network}.head.{key}"
    for network in ("student", "teacher")
    for key in ("name", "margin", "scale")
)

RULES: tuple[Rule, ...] = (
    Rule((_METHOD, "teacher"), _teacher_is_named),
    Rule(("teacher", "teacher.checkpoint", "teacher.train"), _teacher_has_weights),
    Rule((_METHOD, "distill.alpha"), _alpha_is_that_of_the_method),
    Rule((_METHOD, "distill.lam"), _lam_is_that_of_the_method),
    Rule((_METHOD, "distill.feature_weights"), _feature_weights_have_features),
    Rule((_METHOD, "distill.alpha", "distill.lam"), _stablekd_has_one_weight),
    Rule((_METHOD, "distill.decomposition"), _decomposition_is_possible),
    Rule((_METHOD, "distill.decomposition", "student.model", "student.cuts"), _groups_have_blocks),
    Rule(
        (_METHOD, "distill.decomposition", "distill.stage_epochs", "train.epochs"),
        _stages_have_epochs,
    ),
    Rule((*_SCHEDULE, "optim.warmup_fraction"), _warmup_is_above_0_where_needed),
    Rule((*_SCHEDULE, "optim.milestones", "train.epochs"), _milestones_are_those_of_multistep),
    Rule(("data.batch_size", _WORKERS, "train.accumulate"), _micro_batches_have_two_pictures),
    Rule(("train.launcher", _WORKERS), _inline_has_one_worker),
    Rule((_GPUS, _WORKERS), _gpus_can_be_given),
    Rule((_GPUS, "train.batchnorm.sync"), _sync_batchnorm_has_gpus),
    Rule((_METHOD, "train.batchnorm.sync"), _sobolev_has_plain_batchnorm),
    Rule((_GPUS, "train.precision"), _precision_has_a_gpu),
    Rule(("train.loss_scale.initial", "train.loss_scale.floor"), _loss_scale_is_above_its_floor),
    Rule(("train.clip", "train.clip_by"), _clip_by_has_a_bound),
    Rule(_RECALIBRATION, _recalibration_at_stages_is_on),
    Rule((_GROUP_NORM, *_OF_BATCHNORM), _group_norm_stands_alone),
    Rule(("teacher", *_MARGINS), _margin_has_its_head),
    Rule(("teacher", "student.projectors"), _projectors_have_a_teacher),
    Rule(("data.source", "data.root"), _root_where_needed),
    Rule(("data.channels", "data.mean", "data.std"), _moments_fit_channels),
    Rule(("data.mean",), _mean_is_finite),
    Rule(("data.image_size", "data.resize"), _resize_leaves_the_centre),
    Rule(("data.augment.resized_crop",), _crop_areas_are_in_order),
    Rule(
        ("data.loader", *(f"data.augment.{name}" for name in _SINGLE)),
        _resident_pictures_change_together,
    ),
    Rule(
        (_METHOD, "data.augment.mixup", "data.augment.cutmix", *_HEADS), _mixed_labels_can_be_learnt
    ),
)
