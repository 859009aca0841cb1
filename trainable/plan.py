"""Pure arithmetic of a trial: groups, stages, updates. No tensors, no files.

Shared by validation and the engine, so that they cannot disagree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Literal

from trainable.config import DistillConfig, OptimConfig, TrialConfig

Group = tuple[int, int]
"""Consecutive blocks that train together: first block, and the block after the last."""
Schedule = Literal["triangle", "onecycle", "cosine", "multistep"]
"""The shape of the learning rate over time."""
_WARMUP: Mapping[Schedule, float] = {
    "triangle": 0.3,
    "onecycle": 0.3,
    "cosine": 0.05,
    "multistep": 0.0,
}
"""Share of the updates in which the learning rate rises, where the config gives none."""


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
    """Top of its triangle; under a schedule that spans all stages, the trial's highest learning rate."""

    @property
    def last_epoch(self) -> int:
        """Counted from 1."""
        return self.first_epoch + self.epochs - 1


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
    return (k - 1).bit_length()


def head_stays_alone(decomposition: Decomposition) -> bool:
    """Whether the last group is the head's block alone in every stage: as long as each count that is merged is odd.

    So in 3/1, 5/1 and 5/2, but not in 1/0, 2/1, 4/1, 3/2 or 5/3, however many blocks there are.
    """
    count = decomposition.k
    for _ in range(decomposition.n):
        if count % 2 == 0:
            return False
        count = -(-count // 2)
    return count > 1


def peak_learning_rate(config: TrialConfig) -> float:
    """The highest learning rate of a trial: `optim.lr`, or what it makes of one for `optim.lr_batch_size` pictures.

    lr·B/B₀ for SGD, which then goes as far in an epoch whatever the batch size B (Krizhevsky 2014; Goyal et al. 2017,
    §2.1); lr·√(B/B₀) for AdamW, whose step does not shrink with the gradient's noise (Malladi et al. 2022).
    """
    optim = config.optim
    if optim.lr_batch_size is None:
        return optim.lr
    ratio = config.data.batch_size / optim.lr_batch_size
    return optim.lr * (ratio if optim.name == "sgd" else math.sqrt(ratio))


def schedule_of(distill: DistillConfig, optim: OptimConfig) -> Schedule:
    """The schedule that the config names, with `auto` resolved."""
    if optim.schedule != "auto":
        return optim.schedule
    return "triangle" if distill.method == "stablekd" else "onecycle"


def warmup_share(config: TrialConfig) -> float:
    """Share of a cycle's updates in which the learning rate rises."""
    given = config.optim.warmup_fraction
    return _WARMUP[schedule_of(config.distill, config.optim)] if given is None else given


def cycles(config: TrialConfig) -> tuple[int, ...]:
    """Epochs of each rise and fall of the learning rate: those of every stage under `triangle`, else of the trial."""
    if schedule_of(config.distill, config.optim) != "triangle":
        return (config.train.epochs,)
    return _epochs_of_stages(config)


def stages(config: TrialConfig, blocks: int) -> tuple[Stage, ...]:
    """The stages of a trial, recomposed from one to the next; peaks decay under `triangle`.

    Only `stablekd` has more than one. ValueError where `rules.problems` would report one.
    """
    distill, optim, peak_lr = config.distill, config.optim, peak_learning_rate(config)
    decomposition = decomposition_of(config)
    if decomposition is None:
        return (Stage(1, 1, config.train.epochs, ((0, blocks),), peak_lr),)
    groups = initial_groups(blocks, decomposition.k)
    if decomposition.n > largest_n(decomposition.k):
        raise ValueError(f"{decomposition} cannot run: too many recompositions")
    epochs = _epochs_of_stages(config)
    decay = optim.peak_decay if schedule_of(distill, optim) == "triangle" else 1.0
    result: list[Stage] = []
    for index, (span, end) in enumerate(zip(epochs, accumulate(epochs), strict=True)):
        result.append(
            Stage(
                number=index + 1,
                first_epoch=end - span + 1,
                epochs=span,
                groups=groups,
                peak_lr=peak_lr * decay**index,
            )
        )
        groups = recompose(groups)
    return tuple(result)


def decomposition_of(config: TrialConfig) -> Decomposition | None:
    """What divides the network into groups, and the trial into stages; None where nothing does."""
    written = config.distill.decomposition
    if config.distill.method != "stablekd" or written is None:
        return None
    return Decomposition.parse(written)


def _epochs_of_stages(config: TrialConfig) -> tuple[int, ...]:
    """Epochs of each of n + 1 stages: `distill.stage_epochs`, or those that `distill.stage_split` makes.

    ValueError where they do not make up the e epochs of the trial (StableKD, algorithm 1: e₀, …, eₙ).
    """
    total, given = config.train.epochs, config.distill.stage_epochs
    decomposition = decomposition_of(config)
    n = 0 if decomposition is None else decomposition.n
    epochs = _split(total, n, config.distill.stage_split or 1.0) if given is None else given
    if len(epochs) != n + 1 or sum(epochs) != total or min(epochs) < 1:
        raise ValueError(
            f"{n + 1} stage(s) of {list(epochs)} epochs cannot run in {total} epoch(s)"
        )
    return epochs


def _split(epochs: int, n: int, ratio: float) -> tuple[int, ...]:
    """Epochs of n + 1 stages, each `ratio` times those of the one before, as nearly as whole ones can be.

    Each has one, and of the others stage i has the floor of its share rⁱ/(1 + r + … + rⁿ), the last the rest: with
    r = 1 ⌊e/(n + 1)⌋ each and what is left over to the last.
    """
    shares = [Fraction(ratio) ** i for i in range(n + 1)]  # of real ones a floor may be one too few
    spans = [1 + math.floor((epochs - n - 1) * share / sum(shares)) for share in shares[:-1]]
    return (*spans, epochs - sum(spans))


def update_sizes(
    samples: int, batch_size: int, workers: int, drop_last: bool = False
) -> tuple[int, ...]:
    """Samples of each update of an epoch: every sample once, or with `drop_last` whole updates only.

    A tail of fewer than two samples a worker, which BatchNorm could not take, joins the update before it.
    ValueError where not even one update can be had: no rank is ever given fewer than two samples.
    """
    least = batch_size if drop_last else 2 * workers
    if samples < least or batch_size < 2 * workers:
        raise ValueError(
            f"two samples for each of {workers} worker(s), and with drop_last a whole update, must be "
            f"had, but got {samples} in updates of {batch_size} with drop_last = {drop_last}"
        )
    full, tail = divmod(samples, batch_size)
    sizes = [batch_size] * full
    if drop_last:
        return tuple(sizes)
    if tail >= 2 * workers:
        sizes.append(tail)
    elif tail:
        sizes[-1] += tail
    return tuple(sizes)


def micro_batch_sizes(update: int, workers: int, accumulate: int) -> tuple[tuple[int, ...], ...]:
    """Samples of each micro-batch (outer) on each worker (inner), as equal as they can be.

    A short update takes fewer micro-batches, so that every worker has at least two samples in each:
    BatchNorm cannot take one. ValueError where even a single micro-batch would have fewer.
    """
    if update < 2 * workers:
        raise ValueError(f"update >= {2 * workers} must hold for {workers} worker(s), got {update}")
    micro_batches = min(accumulate, update // (2 * workers))
    cells = micro_batches * workers
    size, larger = divmod(update, cells)
    flat = [size + (1 if cell < larger else 0) for cell in range(cells)]
    return tuple(tuple(flat[i : i + workers]) for i in range(0, cells, workers))
