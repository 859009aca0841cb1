"""Rules about learning: does the loss fall, and is the learning rate one at which it can."""

from __future__ import annotations

from trainable import records
from trainable.plan import Stage
from trainable.statistics.diagnosis.history import History, Told
from trainable.statistics.diagnosis.wording import (
    either,
    in_epochs,
    in_stage,
    number,
    percent,
    rounded,
)

ENOUGH_EPOCHS = 3
"""Fewer epochs are no trend: nothing is said of them."""
FALLEN = 0.05
"""A loss that fell by less than this share of its first epoch's did not fall: warm-up epochs fall by more."""
LEARNT = 0.6
"""A validation accuracy above this is no student that never learnt, even of two classes."""
RISEN = 0.05
"""An accuracy that rose by so much rose: five points are beyond the noise of a few hundred pictures."""
DIVERGED = 0.25
"""A loss that rises by this share of its lowest before *and* of the trial's first has diverged: the second, because
noise near 0 is any share of the lowest."""
DIVERGED_MIXED = 1.0
"""The same where pictures are mixed: there an epoch's mean follows the few λ that it drew, by more
than a quarter of the first in healthy trials."""
RECOVERED = 1.05
"""A loss within this factor of its lowest before the rise has come back."""
NEAR_THE_PEAK = 0.5
"""Share of a stage's peak from which a learning rate counts as near it."""
WILD_UPDATE = 0.05
"""‖Δθ‖/‖θ‖ of an update, mean of an epoch: healthy ones stay at some thousandths, and bold ones come here for
an epoch while their loss falls."""
IDLE_UPDATE = 1e-4
"""‖Δθ‖/‖θ‖ of an update, mean of an epoch: a tenth of the usual thousandth, at which a student crosses its own
length in 1,000 updates; here 10,000 and more would be needed."""
USUAL_UPDATE = 1e-3
"""‖Δθ‖/‖θ‖ of an update at which most networks learn well: what a remedy aims at."""
STILL_TO_LEARN = 0.5
"""A loss above this share of the trial's first has most of the way before it; below, small updates are an end."""


def is_stuck(history: History) -> bool:
    """Whether nothing was learnt: no stage's loss fell, and the accuracy, if known, stayed low and flat."""
    if len(history.values(records.TRAIN_LOSS)) < ENOUGH_EPOCHS:
        return False
    by_stage = [history.of(stage).values(records.TRAIN_LOSS) for stage in history.stages]
    trends = [losses for losses in by_stage if len(losses) > 1]
    if not trends or any(min(rest) < (1 - FALLEN) * first for first, *rest in trends):
        return False
    accuracies = history.values(records.VAL_ACCURACY)
    return not accuracies or (max(accuracies) < LEARNT and max(accuracies) - accuracies[0] < RISEN)


def has_diverged(history: History, loss: float, lowest: float) -> bool:
    """Whether a loss lies far above the lowest before it, as the trial's first measures it."""
    first = history.first_loss
    if first is None:
        return False
    share = DIVERGED_MIXED if history.config.data.augment.mixes else DIVERGED
    return loss - lowest >= share * max(lowest, first)


def lr_too_high(history: History) -> Told | None:
    """The loss rises while the learning rate is near its stage's peak, and does not come back."""
    for stage in history.stages:
        if evidence := _divergence(history, stage) or _wildness(history, stage):
            place = in_stage(stage, history.stages)
            return Told(
                f"The learning rate of {place} was too high to learn at.",
                evidence,
                _lower(history, stage),
            )
    return None


def lr_too_low(history: History) -> Told | None:
    """The parameters hardly move, at the peak either, with most of the way still before them."""
    for stage in history.stages:
        own = history.of(stage)
        losses, ratios = own.values(records.TRAIN_LOSS), own.values(records.GRAD_UPDATE_RATIO)
        first = history.first_loss
        if first is None or len(losses) < ENOUGH_EPOCHS or not ratios or not _saw_peak(own, stage):
            continue
        is_far = losses[-1] > STILL_TO_LEARN * first
        if is_far and max(ratios) < IDLE_UPDATE and not _bound_by_clipping(own):
            place = in_stage(stage, history.stages)
            return Told(
                f"The learning rate of {place} was too low: the student hardly moved.",
                f"an update moved the parameters by {number(max(ratios))} of their length at most, "
                f"and train/loss went from {number(losses[0])} to {number(losses[-1])} in "
                f"{len(losses)} epochs, at a peak of {number(stage.peak_lr)}",
                _raise(history, stage, max(ratios)),
            )
    return None


def _divergence(history: History, stage: Stage) -> str | None:
    own = history.of(stage)
    losses = own.series(records.TRAIN_LOSS)
    if len(losses) < ENOUGH_EPOCHS:
        return None
    low = losses[0]
    for point in losses[1:]:
        rate = own.at(records.TRAIN_LR, point.epoch)
        has_risen = has_diverged(history, point.value, low.value)
        at_peak = rate is not None and rate >= NEAR_THE_PEAK * stage.peak_lr
        if has_risen and at_peak and losses[-1].value > RECOVERED * low.value:
            return (
                f"train/loss rose from {number(low.value)} in epoch {low.epoch} to "
                f"{number(point.value)} in epoch {point.epoch}, at a learning rate of "
                f"{number(rate or 0.0)}, and was {number(losses[-1].value)} in epoch "
                f"{losses[-1].epoch}"
            )
        low = min(low, point, key=lambda p: p.value)
    return None


def _wildness(history: History, stage: Stage) -> str | None:
    ratios = history.of(stage).series(records.GRAD_UPDATE_RATIO)
    wild = [point for point in ratios if point.value >= WILD_UPDATE]
    if not wild or not is_stuck(history):
        return None
    largest = max(point.value for point in wild)
    return (
        f"train/loss never fell, while an update moved the parameters by up to {percent(largest)} "
        f"of their length ({in_epochs(point.epoch for point in wild)})"
    )


def _saw_peak(own: History, stage: Stage) -> bool:
    """Whether an update was observed near the peak: a trial pruned in its warm-up has not been there yet."""
    return any(
        own.at(records.GRAD_UPDATE_RATIO, epoch) is not None
        for epoch, lr in own.series(records.TRAIN_LR)
        if lr >= NEAR_THE_PEAK * stage.peak_lr
    )


def _bound_by_clipping(own: History) -> bool:
    """Then it is `train.clip` that keeps updates small."""
    return any(rate > 0.5 for rate in own.values(records.GRAD_CLIP_RATE))


def _lower(history: History, stage: Stage) -> str:
    optim, train = history.config.optim, history.config.train
    remedies = [f"lower optim.lr (now {number(optim.lr)}), e.g. to {rounded(optim.lr / 10)}"]
    if stage.number > 1 and optim.peak_decay == 1:
        remedies.append("set optim.peak_decay below 1, so that later stages have lower peaks")
    if train.clip is None:
        remedies.append("set train.clip")
    return either(remedies)


def _raise(history: History, stage: Stage, ratio: float) -> str:
    optim = history.config.optim
    target = optim.lr * min(USUAL_UPDATE / max(ratio, 1e-12), 1e6)
    remedies = [f"raise optim.lr (now {number(optim.lr)}), towards {rounded(target)}"]
    if stage.number > 1 and optim.peak_decay < 1:
        remedies.append(f"raise optim.peak_decay (now {number(optim.peak_decay)})")
    return either(remedies)
