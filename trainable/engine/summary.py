"""What an epoch was like: sums on the device → its metrics, and the same of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

from trainable import ranks, records
from trainable.engine.evaluate import Evaluator
from trainable.engine.step import CLIPPED, NORM, SAMPLES, UPDATES, Step
from trainable.networks.blocks import BlockNetwork
from trainable.statistics.batchnorm import BatchStatistics
from trainable.statistics.channels import Silence, channel_state

Layers = dict[str, dict[str, float]]
"""Statistics by name, of each layer or block by name."""


@dataclass
class Summary:
    """An epoch's metrics, and the statistics behind them."""

    metrics: dict[str, float]
    layers: Layers = field(default_factory=Layers)
    """Of parameters, and of BatchNorm layers."""
    blocks: Layers = field(default_factory=Layers)
    owners: Mapping[str, str] = field(default_factory=dict[str, str])
    """The block of each parameter."""

    def block_of(self, layer: str) -> str | None:
        """The block that a layer belongs to; None for a BatchNorm layer without parameters."""
        return self.owners.get(layer) or self.owners.get(f"{layer}.weight")

    def add(self, other: Summary) -> None:
        """Take in what another part of the epoch has to tell."""
        self.metrics |= other.metrics
        self.layers |= other.layers
        self.blocks |= other.blocks
        self.owners = {**self.owners, **other.owners}


def training_summary(step: Step, before: Sequence[Mapping[str, float]]) -> Summary:
    """Of the updates since the last flush, which this is.

    `before` are the metrics of all epochs before, from which distances go on. Means are absent where every
    update was skipped.
    """
    losses, gradients = step.losses.flush(over_ranks=True), step.gradients.flush()
    measures, skipped = step.observed.flush(), step.health.flush()
    metrics: dict[str, float] = {
        records.AMP_SCALE: step.precision.scaler.get_scale(),
        records.AMP_SKIPPED: skipped.total,
        **measures.whole,
    }
    metrics |= {records.skipped_at(place): n for place, n in skipped.by_place.items()}
    if samples := losses.pop(SAMPLES, 0.0):
        metrics |= {name: total / samples for name, total in losses.items()}
    good = gradients.pop(UPDATES, 0.0)
    if good:
        metrics[records.GRAD_NORM] = gradients.pop(NORM) / good
        metrics[records.GRAD_CLIP_RATE] = gradients.pop(CLIPPED) / good
        metrics |= {records.grad_norm_of(b): total / good for b, total in gradients.items()}
        for block, total in gradients.items():
            measures.blocks[block][records.GRAD_NORM] = total / good
    names = {records.UPDATE_TRAVELLED: records.UPDATE_DISTANCE}
    for block, unit in measures.blocks.items():
        names[records.update_travelled_of(block)] = records.update_distance_of(block)
        if records.UPDATE_DISTANCE in unit:
            metrics[records.update_distance_of(block)] = unit[records.UPDATE_DISTANCE]
    for travelled, distance in names.items():
        # In an epoch without an observed update, steps are taken to be as long as when last observed.
        length = metrics.get(distance, _last(before, distance))
        metrics[travelled] = _last(before, travelled) + length * good
    return Summary(metrics, measures.layers, measures.blocks, step.observed.owners)


def validation_summary(
    evaluator: Evaluator | None, student: BlockNetwork, *, watch_batch_statistics: bool
) -> Summary:
    """Score of the composed student, how it does with batch statistics, and the state of its channels."""
    # Of the network alone, so that layers are called as it calls them: projectors have no BatchNorm.
    silence, statistics = Silence(student.network), BatchStatistics(student.network)
    found = Summary({})
    if evaluator is not None:
        with silence.watch():
            score = evaluator.score(student)
        found.metrics |= {records.VAL_ACCURACY: score.accuracy, records.VAL_LOSS: score.loss}
    whole, found.layers = channel_state(student.network, silence.channels())
    found.metrics |= whole
    if (
        evaluator is not None
        and watch_batch_statistics
        and statistics
        and evaluator.batches_have_statistics
    ):
        by_batch = evaluator.score_by_batch_statistics(student, statistics)
        drift, *each = ranks.max_over_ranks(statistics.drifts).tolist()
        found.metrics[records.VAL_ACCURACY_BATCH_STATS] = by_batch.accuracy
        found.metrics |= {records.BN_DRIFT: drift, records.BN_DRIFT_MAX: max(each)}
        for name, of_layer in zip(statistics.names, each, strict=True):
            found.layers[name][records.BN_DRIFT] = of_layer
    return found


def _last(epochs: Sequence[Mapping[str, float]], name: str) -> float:
    """A metric in the last epoch that has it; 0 where none has."""
    return next((epoch[name] for epoch in reversed(epochs) if name in epoch), 0.0)


def fluctuation(epochs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """`val/fluctuation` after the metrics of a stage's epochs so far; empty where there is none yet."""
    accuracies = [e[records.VAL_ACCURACY] for e in epochs if records.VAL_ACCURACY in e]
    changes = [abs(after - before) for before, after in pairwise(accuracies)]
    return {records.VAL_FLUCTUATION: fmean(changes)} if changes else {}
