"""What a trial reports: the names of its metrics, their units, and the record of an epoch.

The names are an interface: people script against them, and they are what the MLflow UI shows.
Every metric is the mean over the epoch's updates and over ranks unless it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

TRAIN_LOSS = "train/loss"
"""The weighted sum that is minimised, per sample, in nats plus feature terms."""
TRAIN_CE = "train/ce"
"""Cross-entropy with the labels, per sample, in nats."""
TRAIN_KL = "train/kl"
"""T²·KL(teacher ‖ student), per sample, in nats; unweighted."""
TRAIN_FEATURE = "train/feature"
"""What the method compares besides logits, per sample: Σ over cuts of the mean squared feature error (weighted by
`distill.feature_weights` and `feature_scale` for mse and kd_mse), or the term of at, nst, reviewkd or sobolev
without λ; 0 where no cut is compared."""
TRAIN_LR = "train/lr"
"""Learning rate of the epoch's last update."""
TRAIN_STAGE = "train/stage"
"""StableKD's stage, counted from 1."""
TRAIN_IMAGES_PER_SECOND = "train/images_per_second"
"""Pictures of all workers over the wall time of the epoch's training."""
TRAIN_DATA_WAIT = "train/data_wait"
"""Share of the wall time of the epoch's training in which the loop waited for pictures, in [0, 1]."""
TRAIN_SECONDS = "train/seconds"
"""Wall time of the updates of all epochs so far, in seconds: without validation and checkpoints."""
TRAIN_PEAK_MEMORY = "train/peak_memory_gib"
"""Most GPU memory that the trial held so far on any rank, what is kept for reuse included, in GiB; absent on CPUs."""
VAL_ACCURACY = "val/accuracy"
"""Share of validation pictures that the composed student classifies correctly, in [0, 1]."""
VAL_LOSS = "val/loss"
"""Cross-entropy of the composed student on the validation split, in nats."""
VAL_ACCURACY_BATCH_STATS = "val/accuracy_batch_stats"
"""Validation accuracy with BatchNorm using the statistics of the validation batches."""
VAL_FLUCTUATION = "val/fluctuation"
"""Mean of |accuracy after an epoch − accuracy after the one before| over the epochs of the stage so far (the
measure of StableKD's figures 1a and 3, which the paper leaves to the eye); absent in a stage's first epoch."""
STUDENT_PARAMETERS = "student/parameters"
"""Parameters of the student as it is used, its projectors folded where they can be; told with the last epoch."""
STUDENT_LATENCY = "student/latency_ms"
"""Milliseconds that the student as it is used takes for one picture (`engine.deployed`); told with the last epoch,
where a study seeks or bounds it."""
TEST_ACCURACY = "test/accuracy"
"""Accuracy on the test split, measured once."""
VAL_EER = "val/eer"
"""Equal error rate of telling pairs of the unseen classes' training pictures apart, in [0, 1]."""
TEST_EER = "test/eer"
"""Equal error rate over pairs of the unseen classes' test pictures, measured once, in [0, 1]."""
GRAD_NORM = "grad/norm"
"""2-norm of the whole gradient before noise and clipping."""
GRAD_MEAN = "grad/mean"
"""Mean of the gradient's entries, mean over the observed updates."""
GRAD_STD = "grad/std"
"""Standard deviation of the gradient's entries about their mean, mean over the observed updates."""
GRAD_MAX = "grad/max"
"""Largest size of an entry of the gradient in the observed updates."""
GRAD_PARAMETER_RATIO = "grad/parameter_ratio"
"""‖g‖ / ‖θ‖, mean over the observed updates."""
GRAD_ZERO_SHARE = "grad/zero_share"
"""Share of the gradient's entries that are exactly 0, mean over the observed updates, in [0, 1]."""
GRAD_NONFINITE_SHARE = "grad/nonfinite_share"
"""Share of the gradient's entries that are not finite, mean over the updates looked at, skipped ones with them."""
GRAD_FIRST_TO_LAST = "grad/first_to_last"
"""Gradient 2-norm of the first block over that of the last (the head), mean over the observed updates."""
GRAD_CLIP_RATE = "grad/clip_rate"
"""Share of updates whose gradient was clipped."""
GRAD_UPDATE_RATIO = "grad/update_ratio"
"""‖θ_{t+1} − θ_t‖ / ‖θ_t‖ over the observed updates."""
UPDATE_DISTANCE = "update/distance"
"""‖θ_{t+1} − θ_t‖ of the whole student, mean over the observed updates (StableKD §3)."""
UPDATE_TRAVELLED = "update/travelled"
"""Σ_t ‖θ_{t+1} − θ_t‖ since the trial began: each epoch's mean distance times the updates it took."""
AMP_SCALE = "amp/scale"
"""Loss scale at the end of the epoch; 1 without GradScaler."""
AMP_SKIPPED = "amp/skipped"
"""Updates of the epoch that were skipped: a picture, label, loss, gradient or running statistic was not
finite (or no class)."""
BN_DRIFT = "bn/drift"
"""Mean over layers and channels of |running mean − mean of the validation batches| / running std, on the rank
where it is largest."""
BN_DRIFT_MAX = "bn/drift_max"
"""As `bn/drift`, the mean over the channels of the layer where it is largest."""
BN_MIN_VAR = "bn/min_var"
"""Smallest running variance of any channel."""
BN_DEAD_CHANNELS = "bn/dead_channels"
"""Channels whose running variance is at most 1e-12, or whose ReLU gave 0 for every validation picture."""
BN_DEAD_SHARE = "bn/dead_share"
"""`bn/dead_channels` over all channels, in [0, 1]."""
BN_MIN_SCALE = "bn/min_scale"
"""Smallest |γ| / √(running variance + ε) of any channel: what the layer multiplies it by."""
BN_MAX_SCALE = "bn/max_scale"
"""Largest |γ| / √(running variance + ε) of any channel."""
BEST_VAL_ACCURACY = "best/val_accuracy"
"""Validation accuracy of a trial's best epoch so far, at that epoch; of a study, that of its best complete trial so
far, at the number of trials that have ended."""
BEST_TEST_ACCURACY = "best/test_accuracy"
"""Of a study, the test accuracy of its best trial, measured once; the mean over its replicates, where it has some."""
BEST_TEST_ACCURACY_SD = "best/test_accuracy_sd"
"""Of a study, the standard deviation of its best trial's test accuracy over two replicates or more."""
STUDY_TRIALS = {
    "complete": "study/complete",
    "pruned": "study/pruned",
    "failed": "study/failed",
    "running": "study/running",
    "waiting": "study/waiting",
}
"""Of a study, the trials in each state, at the number of trials that have ended."""
STUDY_GPU_HOURS = "study/gpu_hours"
"""Of a study, the hours of all its trainings so far, times the GPUs of one."""
STUDY_TRIAL_HOURS = "study/trial_hours"
"""Of a study without GPUs, the hours of all its trainings so far."""

STATISTICS = "statistics.parquet"
"""File in a trial's folder with the statistics of every layer after each epoch (`engine.series`)."""
NOTES = "out_of_memory.txt"
"""File in a trial's folder: a line for each time that it found no memory beside others (`engine.neighbours`)."""
EPOCH, EPOCHS, VALUE, METRICS = "epoch", "epochs", "value", "metrics"
"""Keys of a result (see `EpochRecord.to_result`)."""


def grad_norm_of(block: str) -> str:
    """Metric of a block's gradient 2-norm before clipping."""
    return f"{GRAD_NORM}.{block}"


def skipped_at(place: str) -> str:
    """Metric of the skipped updates in which `place` was the first that was not finite.

    A place is `input`, `label`, a loss term (`ce`, `kl`, `feature`, or `loss` for their weighted sum alone),
    `batchnorm` (the running statistics) or a block (its gradient). Absent where there is none.
    """
    return f"{AMP_SKIPPED}.{place}"


def update_distance_of(block: str) -> str:
    """Metric of ‖θ_{t+1} − θ_t‖ of a block, mean over the observed updates (StableKD §3)."""
    return f"{UPDATE_DISTANCE}.{block}"


def update_travelled_of(block: str) -> str:
    """Metric of a block's `update/travelled`."""
    return f"{UPDATE_TRAVELLED}.{block}"


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are finite numbers, as floats: stores and samplers cannot take the others."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


@dataclass(frozen=True)
class EpochRecord:
    """What a trial reports after an epoch, reduced over its ranks."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """Finite numbers by metric name; a metric that does not apply is absent."""
    timestamp_ms: int
    """When the epoch ended, in milliseconds since 1970: a replayed record keeps it."""

    def to_result(self, epochs: int) -> dict[str, Any]:
        """As Ray carries it: the record, the epochs planned, and a value to compare trials by.

        The value is always a finite number, or Optuna would keep the trial running for ever.
        """
        value = self.metrics.get(VAL_ACCURACY, 0.0)
        # Not a dict: of each number in one Tune keeps statistics as long as it lives, 0.1 MiB a trial.
        metrics = list(self.metrics.items())
        return {**asdict(self), METRICS: metrics, EPOCHS: epochs, VALUE: value}

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> EpochRecord:
        """What `to_result` gave."""
        return cls(result["epoch"], dict(result[METRICS]), result["timestamp_ms"])


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a trial or a study, as its statistics tell."""

    name: str
    """Of the rule that found it, e.g. `exploding_gradients`: what the tag `kd.health` holds."""
    words: str
    """What is wrong, in a plain sentence."""
    evidence: str
    """The numbers that show it, with their epochs and places."""
    remedy: str
    """What to change, naming a key of the config."""
