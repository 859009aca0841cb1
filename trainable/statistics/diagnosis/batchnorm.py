"""Rules about BatchNorm: its running statistics, and channels that say nothing any more."""

from __future__ import annotations

from trainable import records
from trainable.statistics.diagnosis.history import History, Point, Told, last_run, runs
from trainable.statistics.diagnosis.wording import either, in_epochs, number, percent

GAP = 0.1
"""Points of accuracy between batch and running statistics: ten are beyond the noise of a hundred pictures, and
healthy trials keep below them once their first epochs are over."""
FALLEN = 0.05
"""An accuracy so far below an earlier one has fallen, while that with batch statistics has not."""
FALLEN_EPOCHS = 3
"""A bad epoch or two at the peak of a bold learning rate are usual, and come back by themselves."""
LASTING_EPOCHS = 5
"""Running statistics start at 0 and 1, and with few updates an epoch lag behind for some: not for so many."""
SHORT_STAGE = 3
"""A last stage of fewer epochs than `LASTING_EPOCHS`, but of so many, is judged when it is over."""
RECOVERING = 0.5
"""A gap below this share of its largest closes by itself, in a trial that still runs."""
STRAYED = 1.0
"""`bn/drift` at which running means are off by a whole standard deviation, in the mean of all channels."""
SLOW_MOMENTUM = 0.05
"""Below this a running statistic takes more than 20 batches to follow: torch's own is 0.1."""
DEAD = 0.2
"""Share of dead channels from which a network is narrower than it was built: some hundredths are usual, and
more where weight decay had long to work."""
DYING = 0.05
"""Growth of the share of dead channels that is no fixed part of the network or the pictures."""


def batchnorm_drift(history: History) -> Told | None:
    """The running statistics do not describe the batches, so that evaluation says less than training."""
    bad = sorted({*_fallen(history), *_lasting(history)})
    if not bad:
        return None
    worst = max(bad, key=lambda point: point.value)
    accuracy = history.at(records.VAL_ACCURACY, worst.epoch)
    by_batch = history.at(records.VAL_ACCURACY_BATCH_STATS, worst.epoch)
    drift = history.at(records.BN_DRIFT, worst.epoch)
    found = f"in {in_epochs(point.epoch for point in bad)}"
    if accuracy is not None and by_batch is not None:
        found += (
            f" val/accuracy was {percent(accuracy)} with running statistics and "
            f"{percent(by_batch)} with those of the batches (epoch {worst.epoch})"
        )
    if drift is not None:
        found += f"; bn/drift was {number(drift)} there"
    norm, words = (
        history.config.train.batchnorm,
        "BatchNorm's running statistics no longer describe the batches",
    )
    groups = history.stages[-1].groups
    if any(0 < first < groups[-1][1] - 1 for first, _ in groups):
        words += ": later blocks learn from the teacher's features, and have theirs"
    elif history.config.data.sampling == "balanced" and not norm.recalibrate:
        words += ", and are those of the oversampled mix of data.sampling: balanced"
    return Told(f"{words}.", found, _settle(history, bad[0].epoch))


def dead_channels(history: History) -> Told | None:
    """A growing share of channels is dead: always 0, or of a running variance of 0."""
    shares = history.series(records.BN_DEAD_SHARE)
    if len(shares) < 2:
        return None
    first, last = shares[0], shares[-1]
    if last.value < DEAD or last.value - first.value < DYING:
        return None
    count = history.at(records.BN_DEAD_CHANNELS, last.epoch)
    variance = history.at(records.BN_MIN_VAR, last.epoch)
    found = f"{percent(last.value)} of the channels were dead in epoch {last.epoch}"
    found += "" if count is None else f" ({number(count)})"
    found += f", {percent(first.value)} in epoch {first.epoch}"
    found += "" if variance is None else f"; the smallest running variance was {number(variance)}"
    return Told(
        "Channels die: they are 0 for every picture, and learn no more.", found, _revive(history)
    )


def _judged(history: History) -> History:
    """The last stage's epochs: before it, blocks train on the teacher's features and not on those of the
    student as it is evaluated."""
    return history.of(history.stages[-1])


def _gaps(history: History) -> tuple[Point, ...]:
    """Accuracy with batch statistics less that with running ones."""
    return tuple(
        Point(epoch, by_batch - accuracy)
        for epoch, by_batch in history.series(records.VAL_ACCURACY_BATCH_STATS)
        if (accuracy := history.at(records.VAL_ACCURACY, epoch)) is not None
    )


def _fallen(history: History) -> list[Point]:
    """Epochs in which the accuracy has fallen with running statistics alone, in some epochs on end."""
    own = _judged(history)

    def has_fallen(gap: Point) -> bool:
        before = [p.value for p in history.series(records.VAL_ACCURACY) if p.epoch < gap.epoch]
        now = history.at(records.VAL_ACCURACY, gap.epoch)
        is_lower = now is not None and bool(before) and now <= max(before) - FALLEN
        return gap.value >= GAP and is_lower

    found = runs(_gaps(own), has_fallen)
    return [point for run in found if len(run) >= FALLEN_EPOCHS for point in run]


def _lasting(history: History) -> list[Point]:
    """The epochs up to the last in which the statistics were off, if they are many and it gets no better."""
    own, stage = _judged(history), history.stages[-1]
    is_over = bool(own.records) and own.records[-1].epoch == stage.last_epoch
    enough = min(LASTING_EPOCHS, max(SHORT_STAGE, stage.epochs)) if is_over else LASTING_EPOCHS
    for points, bound in ((_gaps(own), GAP), (own.series(records.BN_DRIFT), STRAYED)):
        found = last_run(points, lambda point, bound=bound: point.value >= bound)
        if len(found) < enough:
            continue
        if is_over or found[-1].value >= RECOVERING * max(point.value for point in found):
            return found
    return []


def _settle(history: History, since: int) -> str:
    norm, lr = history.config.train.batchnorm, history.config.optim.lr
    remedies: list[str] = []
    if norm.recalibrate == 0:
        mix = (
            " (on pictures in their own mix)" if history.config.data.sampling == "balanced" else ""
        )
        remedies.append(f"set train.batchnorm.recalibrate, e.g. to 50 updates{mix}")
    if norm.momentum is not None and norm.momentum < SLOW_MOMENTUM:
        remedies.append(f"raise train.batchnorm.momentum (now {number(norm.momentum)})")
    remedies.append(f"lower optim.lr (now {number(lr)})")
    if norm.freeze_after is None and since > 1:
        remedies.append(f"set train.batchnorm.freeze_after: {since - 1}, before they went astray")
    return either(remedies)


def _revive(history: History) -> str:
    optim = history.config.optim
    remedies = [f"lower optim.lr (now {number(optim.lr)})"]
    if optim.weight_decay > 0:
        remedies.append(f"lower optim.weight_decay (now {number(optim.weight_decay)})")
    if history.config.train.clip is None:
        remedies.append("set train.clip")
    return either(remedies)
