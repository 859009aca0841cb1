"""Pure arithmetic of a trial: groups, stages, updates. No tensors, no files.

Shared by validation, the search space and the engine, so that they cannot disagree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainable.config import DistillConfig, OptimConfig, TrainConfig, TrialConfig
from trainable.errors import Problem

Group = tuple[int, int]
"""Consecutive blocks that train together: first block, and the block after the last."""


@dataclass(frozen=True)
class Decomposition:
    """k groups at first, n recompositions (StableKD-k/n)."""

    k: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Decomposition:
        """`"5/2"` → k = 5, n = 2."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ValueError(f"a decomposition must be written k/n, but got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.k}/{self.n}"


@dataclass(frozen=True)
class Stage:
    """A span of epochs with one grouping."""

    number: int
    """Counted from 1."""
    first_epoch: int
    """Counted from 1."""
    epochs: int
    groups: tuple[Group, ...]
    peak_lr: float
    """Highest learning rate of the stage."""


def initial_groups(blocks: int, k: int) -> tuple[Group, ...]:
    """k consecutive groups: the head alone, the other blocks in k − 1 groups, earlier ones larger."""
    if not 1 <= k <= blocks:
        raise ValueError(f"1 <= k <= {blocks} must hold, but got k = {k}")
    if k == 1:
        return ((0, blocks),)
    size, larger = divmod(blocks - 1, k - 1)
    groups: list[Group] = []
    start = 0
    for index in range(k - 1):
        stop = start + size + (1 if index < larger else 0)
        groups.append((start, stop))
        start = stop
    return (*groups, (start, blocks))


def recompose(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Merge groups (1, 2), (3, 4), …: k → ⌈k/2⌉ (StableKD, definition 1)."""
    return tuple(
        (groups[i][0], groups[min(i + 1, len(groups) - 1)][1]) for i in range(0, len(groups), 2)
    )


def largest_n(k: int) -> int:
    """Recompositions until one group is left: ⌈log₂ k⌉."""
    return math.ceil(math.log2(k))


def valid_decompositions(blocks: int) -> tuple[Decomposition, ...]:
    """Every k/n that networks of so many blocks allow."""
    return tuple(Decomposition(k, n) for k in range(1, blocks + 1) for n in range(largest_n(k) + 1))


def schedule_of(distill: DistillConfig, optim: OptimConfig) -> str:
    """`triangle` or `onecycle`, with `auto` resolved."""
    if optim.schedule != "auto":
        return optim.schedule
    return "triangle" if distill.method == "stablekd" else "onecycle"


def stages(config: TrialConfig, blocks: int) -> tuple[Stage, ...]:
    """The stages of a trial: ⌊e/(n+1)⌋ epochs each, the rest to the last; peaks decay from stage to stage.

    Only `stablekd` has more than one. Raises ValueError where `problems` would report one.
    """
    distill, optim = config.distill, config.optim
    if distill.method != "stablekd" or distill.decomposition is None:
        return (Stage(1, 1, config.train.epochs, ((0, blocks),), optim.lr),)
    decomposition = Decomposition.parse(distill.decomposition)
    groups = initial_groups(blocks, decomposition.k)
    count = decomposition.n + 1
    each = config.train.epochs // count
    decays = schedule_of(distill, optim) == "triangle"
    result: list[Stage] = []
    for index in range(count):
        last = index == count - 1
        result.append(
            Stage(
                number=index + 1,
                first_epoch=1 + index * each,
                epochs=config.train.epochs - index * each if last else each,
                groups=groups,
                peak_lr=optim.lr * (optim.peak_decay**index if decays else 1.0),
            )
        )
        groups = recompose(groups)
    return tuple(result)


def update_sizes(samples: int, batch_size: int, workers: int) -> tuple[int, ...]:
    """Samples of each update of an epoch: every sample once.

    A tail of fewer than two samples a worker, which BatchNorm could not take, joins the update before it.
    """
    full, tail = divmod(samples, batch_size)
    sizes = [batch_size] * full
    if tail >= 2 * workers or (tail and not sizes):
        sizes.append(tail)
    elif tail:
        sizes[-1] += tail
    return tuple(sizes)


def micro_batch_sizes(update: int, workers: int, accumulate: int) -> tuple[tuple[int, ...], ...]:
    """Samples of each micro-batch (outer) on each worker (inner), as equal as they can be.

    A short update takes fewer micro-batches, so that every worker has at least two samples in each.
    """
    micro_batches = max(1, min(accumulate, update // (2 * workers)))
    cells = micro_batches * workers
    size, larger = divmod(update, cells)
    flat = [size + (1 if cell < larger else 0) for cell in range(cells)]
    return tuple(tuple(flat[i : i + workers]) for i in range(0, cells, workers))


def problems(config: TrialConfig, blocks: int | None = None) -> list[Problem]:
    """All that is wrong with a trial beyond its single fields; `blocks` of the networks, if known."""
    return [
        *_teacher_problems(config),
        *_distill_problems(config, blocks),
        *_train_problems(config.train, config.data.batch_size, config.resources.gpus_per_worker),
        *_data_problems(config),
    ]


def _teacher_problems(config: TrialConfig) -> list[Problem]:
    teacher = config.teacher
    if teacher is None:
        if config.distill.method == "none":
            return []
        return [
            Problem(
                "teacher",
                f"distill.method {config.distill.method} needs a teacher",
                "name teacher.model, with teacher.checkpoint or teacher.train",
            )
        ]
    if (teacher.checkpoint is None) == (teacher.train is None):
        both = teacher.checkpoint is not None
        return [
            Problem(
                "teacher",
                "must have exactly one of checkpoint and train",
                "remove one" if both else "give a file to load, or epochs to train for",
                "both" if both else "neither",
            )
        ]
    return []


def _distill_problems(config: TrialConfig, blocks: int | None) -> list[Problem]:
    distill = config.distill
    found: list[Problem] = []
    if distill.method in ("kd", "kd_mse") and distill.alpha is None:
        found.append(
            Problem(
                "distill.alpha",
                f"method {distill.method} needs it",
                "give a weight from 0 to 1 (0.5 weighs both terms alike)",
                "nothing",
            )
        )
    if distill.method in ("kd", "kd_mse") and distill.lam is not None:
        found.append(
            Problem(
                "distill.lam",
                f"belongs to stablekd, not to {distill.method}",
                "remove it, or set distill.method to stablekd",
                repr(distill.lam),
            )
        )
    if distill.feature_weights is not None and distill.method != "kd_mse":
        found.append(
            Problem(
                "distill.feature_weights",
                f"belongs to kd_mse, not to {distill.method}",
                "remove it, or set distill.method to kd_mse",
            )
        )
    if distill.method == "stablekd":
        found += _stablekd_problems(config, blocks)
    return found


def _stablekd_problems(config: TrialConfig, blocks: int | None) -> list[Problem]:
    distill = config.distill
    found: list[Problem] = []
    if (distill.alpha is None) == (distill.lam is None):
        both = distill.alpha is not None
        found.append(
            Problem(
                "distill",
                "stablekd needs exactly one of lam (CE + λ·T²·KL) and alpha ((1 − α)·CE + α·T²·KL)",
                "remove one" if both else "set one, e.g. lam: 1.0",
                "both" if both else "neither",
            )
        )
    if distill.decomposition is None:
        rule, remedy = "stablekd needs it", "write k/n, e.g. 5/2"
        return [*found, Problem("distill.decomposition", rule, remedy, "nothing")]
    k, n = (part := Decomposition.parse(distill.decomposition)).k, part.n
    if k < 1 or (blocks is not None and k > blocks):
        bound = f"1 <= k <= {blocks}" if blocks is not None else "k >= 1"
        remedy = "choose a smaller k, or cut the networks at more places (student.cuts)"
        if k < 1:
            remedy = "k = 1 is one group, which is vanilla KD"
        return [*found, Problem("distill.decomposition", f"{bound} must hold", remedy, str(part))]
    if n > largest_n(k):
        found.append(
            Problem(
                "distill.decomposition",
                f"n <= {largest_n(k)} must hold for k = {k} (⌈log₂ k⌉ recompositions leave one group)",
                f"write {k}/{largest_n(k)} or a smaller n",
                str(part),
            )
        )
    elif config.train.epochs < n + 1:
        found.append(
            Problem(
                "train.epochs",
                f"must be >= {n + 1}, one for each stage of {part}",
                "train longer, or recompose less often",
                str(config.train.epochs),
            )
        )
    return found


def _train_problems(train: TrainConfig, batch_size: int, gpus: float | None) -> list[Problem]:
    found: list[Problem] = []
    smallest = 2 * train.workers * train.accumulate
    if batch_size < smallest:
        found.append(
            Problem(
                "data.batch_size",
                f"must be >= {smallest}, two pictures for each of {train.workers} worker(s) in each of "
                f"{train.accumulate} micro-batch(es)",
                "raise it, or lower train.workers or train.accumulate",
                str(batch_size),
            )
        )
    if train.workers > 1 and train.launcher == "inline":
        found.append(
            Problem(
                "train.launcher",
                f"inline runs one worker, and train.workers is {train.workers}",
                "set it to auto or torch_trainer",
                "'inline'",
            )
        )
    if gpus is not None and gpus % 1 and (train.workers > 1 or gpus > 1):
        rule = "NCCL needs a whole GPU for each worker" if gpus < 1 else "must be whole above 1"
        found.append(
            Problem(
                "resources.gpus_per_worker",
                rule,
                "use 1 (or 0, for CPU workers), or train.workers: 1 to share a GPU",
                str(gpus),
            )
        )
    if gpus == 0 and train.batchnorm.sync:
        found.append(
            Problem(
                "train.batchnorm.sync",
                "SyncBatchNorm runs on GPUs only",
                "set it to false, or give the workers GPUs",
                "true with gpus_per_worker 0",
            )
        )
    if gpus == 0 and train.precision == "fp16":
        found.append(
            Problem(
                "train.precision",
                "fp16 needs a GPU",
                "use fp32 or bf16 on CPUs",
                "'fp16' with gpus_per_worker 0",
            )
        )
    return found


def _data_problems(config: TrialConfig) -> list[Problem]:
    data = config.data
    found: list[Problem] = []
    if data.source == "digits":
        if data.root is not None:
            found.append(
                Problem("data.root", "digits needs no folder", "remove it", repr(data.root))
            )
    elif data.root is None:
        found.append(
            Problem(
                "data.root", f"{data.source} needs a folder", "name where its files are", "nothing"
            )
        )
    for name, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and len(values) != data.channels:
            found.append(
                Problem(
                    f"data.{name}",
                    f"must have {data.channels} value(s), one a channel",
                    "give one value for each of data.channels",
                    str(list(values)),
                )
            )
    return found
