"""Which samples make up each update of an epoch on each rank, from the arguments alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainable.data.hashing import permutation, stream_key
from trainable.plan import micro_batch_sizes, update_sizes

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Update:
    """The samples of one optimizer update, as one rank sees it."""

    size: int
    """Samples of the update on all ranks: the divisor of its loss."""
    micro_batches: tuple[Indices, ...]
    """This rank's sample indices, one (b,) array a micro-batch; b ≥ 2."""


def epoch_order(samples: int, seed: int, epoch: int) -> Indices:
    """The order of an epoch's samples, a permutation of 0 .. samples − 1, (samples,)."""
    return permutation(stream_key("order", seed, epoch), samples)


def balanced_order(labels: npt.NDArray[np.int64], seed: int, epoch: int) -> Indices:
    """An epoch's samples with every class drawn equally often, in their order, (samples,).

    There are as many draws as samples. Each class that has samples gets the same number of them; the
    few that are left over go to one class each, others in each epoch. A class's draws go round its
    samples in an order of the epoch: none is drawn twice before each was drawn once, so a large class
    leaves some out, others in each epoch, and a small one repeats all of its own alike.
    """
    members = np.split(np.argsort(labels, kind="stable"), _ends_of_classes(labels))
    each, left_over = divmod(len(labels), len(members))
    turns = permutation(stream_key("balance", seed, epoch), len(members))
    drawn: list[Indices] = []
    for turn, own in zip(turns, members, strict=True):
        label = int(labels[own[0]])
        order = permutation(stream_key("balance", seed, epoch, label), len(own))
        drawn.append(np.resize(own[order], each + (1 if turn < left_over else 0)))
    return np.concatenate(drawn)[epoch_order(len(labels), seed, epoch)]


def updates(
    order: Indices,
    batch_size: int,
    workers: int,
    accumulate: int,
    rank: int,
    drop_last: bool = False,
) -> list[Update]:
    """Every update of an epoch with this rank's share: each place of `order` once over all ranks.

    The samples of an update do not depend on `workers` and `accumulate`, except for a tail so
    short that BatchNorm could not take it on every worker (`plan.update_sizes`). `drop_last`
    leaves the last samples of the order out where they do not make a whole update: others
    in each epoch. ValueError, never a share of fewer than two samples.
    """
    result: list[Update] = []
    start = 0
    for size in update_sizes(len(order), batch_size, workers, drop_last):
        micro_batches: list[Indices] = []
        for cells in micro_batch_sizes(size, workers, accumulate):
            own = start + sum(cells[:rank])
            micro_batches.append(order[own : own + cells[rank]])
            start += sum(cells)
        result.append(Update(size, tuple(micro_batches)))
    return result


def shards(samples: int, batch_size: int, workers: int, rank: int) -> list[Indices]:
    """One rank's evaluation batches in a fixed order: each sample once over all ranks.

    Batches hold at most `batch_size` samples and are as equal as they can be. Each is spread
    evenly over the whole set, because a set sorted by class, cut into consecutive batches, would
    give BatchNorm the statistics of one class at a time. Every rank has as many batches as the
    others, since SyncBatchNorm exchanges statistics in each; on a small set some may be empty.
    """
    own = np.arange(rank, samples, workers, dtype=np.int64)
    count = math.ceil(math.ceil(samples / workers) / batch_size)
    return [own[batch::count] for batch in range(count)]


def _ends_of_classes(labels: npt.NDArray[np.int64]) -> Indices:
    """Where one class ends and the next begins, once sorted."""
    return np.flatnonzero(np.diff(np.sort(labels))) + 1
