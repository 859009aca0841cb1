"""Sums on the device → the metrics of an epoch."""

from __future__ import annotations

from trainable import ranks, records
from trainable.engine.evaluate import Evaluator
from trainable.engine.step import CLIPPED, NORM, OBSERVED, RATIO, SAMPLES, UPDATES, Step
from trainable.networks.blocks import BlockNetwork
from trainable.statistics.batchnorm import BatchStatistics, batchnorm_state


def training_metrics(step: Step) -> dict[str, float]:
    """Means since the last flush, which this is. Absent where every update was skipped."""
    losses = step.losses.flush(over_ranks=True)
    gradients, distances = step.gradients.flush(), step.distances.flush()
    skipped = step.health.flush()
    metrics: dict[str, float] = {
        records.AMP_SCALE: step.precision.scaler.get_scale(),
        records.AMP_SKIPPED: skipped.total,
    }
    metrics |= {records.skipped_at(place): n for place, n in skipped.by_place.items()}
    if samples := losses.pop(SAMPLES, 0.0):
        metrics |= {name: total / samples for name, total in losses.items()}
    if good := gradients.pop(UPDATES, 0.0):
        metrics[records.GRAD_NORM] = gradients.pop(NORM) / good
        metrics[records.GRAD_CLIP_RATE] = gradients.pop(CLIPPED) / good
        metrics |= {records.grad_norm_of(b): total / good for b, total in gradients.items()}
    if observed := distances.pop(OBSERVED, 0.0):
        metrics[records.GRAD_UPDATE_RATIO] = distances.pop(RATIO) / observed
        metrics |= {records.update_distance_of(b): d / observed for b, d in distances.items()}
    return metrics


def batchnorm_metrics(student: BlockNetwork) -> dict[str, float]:
    """Health of the running statistics; empty for a student without BatchNorm."""
    state = batchnorm_state(student)
    if state is None:
        return {}
    return {records.BN_MIN_VAR: state.min_var, records.BN_DEAD_CHANNELS: state.dead_channels}


def validation_metrics(
    evaluator: Evaluator, student: BlockNetwork, watch_batch_statistics: bool
) -> dict[str, float]:
    """Score of the composed student, and how it does with batch statistics where that is watched."""
    score = evaluator.score(student)
    metrics = {records.VAL_ACCURACY: score.accuracy, records.VAL_LOSS: score.loss}
    statistics = BatchStatistics(student)
    if watch_batch_statistics and statistics and evaluator.batches_have_statistics:
        by_batch = evaluator.score_by_batch_statistics(student, statistics)
        metrics[records.VAL_ACCURACY_BATCH_STATS] = by_batch.accuracy
        metrics[records.BN_DRIFT] = ranks.mean_over_ranks(statistics.drift, evaluator.device)
    return metrics
