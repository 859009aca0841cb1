"""Rules about the gradient: its size, and its bound."""

from __future__ import annotations

import math
from statistics import median

from trainable import records
from trainable.statistics.diagnosis.history import History, Told
from trainable.statistics.diagnosis.learning import ENOUGH_EPOCHS, has_diverged, is_stuck
from trainable.statistics.diagnosis.wording import either, in_epochs, number, rounded

EXPLOSION = 10.0
"""A norm so many times the median of the epochs before has exploded: healthy ones grow by less than 2."""
TINY_RATIO = 1e-4
"""‖g‖/‖θ‖ below which SGD needs a learning rate above 1 to move a student by 10⁻⁴ of its length an update."""
TINY_FIRST_TO_LAST = 1e-3
"""Gradient of the first block over the head's: a block that learns a thousand times slower does not learn."""
ALWAYS = 0.99
"""Clip rate of an epoch in which, one update in a hundred aside, all were clipped."""
MOST = 0.8
"""Share of the epochs that is most of training."""
FAR_BELOW = 20.0
"""A usual norm so many times the bound: nearer bounds act as often in healthy trials (`clip: 1` is in wide use), and
leave the gradient's length to the optimizer's own scale."""
OUT_OF_REACH = 10.0
"""A bound so many times the largest epoch's norm does nothing; a nearer one may be meant for a rare spike."""


def exploding_gradients(history: History) -> Told | None:
    """The norm grows far beyond what it was in its stage, and the loss with it."""
    for stage in history.stages:
        own = history.of(stage)
        norms = own.series(records.GRAD_NORM)
        for place in range(1, len(norms)):
            usual = median(point.value for point in norms[:place])
            epoch, norm = norms[place]
            if norm <= EXPLOSION * usual or not _suffers(history, own, epoch):
                continue
            blocks = _grown(own, epoch)
            return Told(
                "Gradients exploded: they grew far beyond their usual size, and the loss with them.",
                f"grad/norm was {number(norm)} in epoch {epoch}, and {number(usual)} before"
                + (f"; most in {blocks}" if blocks else ""),
                _tame(history, usual),
            )
    return None


def vanishing_gradients(history: History) -> Told | None:
    """Nothing is learnt, and the gradient is too small to change that."""
    if not is_stuck(history):
        return None
    found: list[str] = []
    ratios = history.values(records.GRAD_PARAMETER_RATIO)
    if ratios and max(ratios) < TINY_RATIO:
        found.append(f"grad/parameter_ratio was {number(max(ratios))} at most")
    shares = history.values(records.GRAD_FIRST_TO_LAST)
    if shares and max(shares) < TINY_FIRST_TO_LAST:
        found.append(f"the first block's gradient was {number(max(shares))} of the head's at most")
    if not found:
        return None
    first, *_, last = history.values(records.TRAIN_LOSS)
    return Told(
        "Gradients vanished: what reaches the parameters is too small to learn from.",
        f"{', '.join(found)}, and train/loss went from {number(first)} to {number(last)}",
        _wake(history),
    )


def always_clipped(history: History) -> Told | None:
    """Nearly every update was clipped, to far less than its gradient's length."""
    train, rates = history.config.train, history.series(records.GRAD_CLIP_RATE)
    # By layer or value the rate counts updates in which any layer or element was bounded: that says little.
    if train.clip is None or train.clip_by != "norm" or len(rates) < ENOUGH_EPOCHS:
        return None
    clipped = [point for point in rates if point.value >= ALWAYS]
    if len(clipped) < MOST * len(rates):
        return None
    norms = history.values(records.GRAD_NORM)
    if not norms or median(norms) < FAR_BELOW * train.clip:
        return None
    usual = median(norms)
    return Told(
        "Nearly every update was clipped, and to a small part of its length.",
        f"all but 1 % of the updates were clipped in {in_epochs(p.epoch for p in clipped)} of "
        f"{len(rates)}, to {number(train.clip)} from a median grad/norm of {number(usual)}",
        f"raise train.clip (now {number(train.clip)}), e.g. to {rounded(2 * usual)}, twice the usual norm",
    )


def never_clipped(history: History) -> Told | None:
    """`train.clip` is set out of reach of every gradient: it does nothing."""
    train, rates = history.config.train, history.values(records.GRAD_CLIP_RATE)
    name = records.GRAD_MAX if train.clip_by == "value" else records.GRAD_NORM
    sizes = history.values(name)
    if train.clip is None or len(rates) < ENOUGH_EPOCHS or any(rates) or not sizes:
        return None
    if train.clip < OUT_OF_REACH * max(sizes):
        return None
    return Told(
        "train.clip never acted: it is far above every gradient.",
        f"no update of {len(rates)} epochs was clipped, and {name} was {number(max(sizes))} at most",
        f"lower train.clip (now {number(train.clip)}), e.g. to {rounded(2 * max(sizes))}, or remove it",
    )


def _suffers(history: History, own: History, epoch: int) -> bool:
    """Whether the loss of an epoch is well above the lowest before it in its stage."""
    before = [point.value for point in own.series(records.TRAIN_LOSS) if point.epoch < epoch]
    now = own.at(records.TRAIN_LOSS, epoch)
    return bool(before) and now is not None and has_diverged(history, now, min(before))


def _grown(own: History, epoch: int) -> str:
    """The block whose norm grew most over its usual one."""
    growth: dict[str, float] = {}
    for block in own.suffixes(records.GRAD_NORM):
        name = records.grad_norm_of(block)
        before = [point.value for point in own.series(name) if point.epoch < epoch]
        now = own.at(name, epoch)
        if now is not None and before and median(before) > 0:
            growth[block] = now / median(before)
    return max(growth, key=lambda block: growth[block]) if growth else ""


def _tame(history: History, usual: float) -> str:
    clip, lr = history.config.train.clip, history.config.optim.lr
    bound = rounded(2 * usual) if math.isfinite(2 * usual) and usual > 0 else "1"
    if clip is None:
        return f"set train.clip, e.g. to {bound}, or lower optim.lr (now {number(lr)})"
    remedies = [f"lower optim.lr (now {number(lr)})"]
    if clip > EXPLOSION * usual:
        remedies.append(f"lower train.clip (now {number(clip)}), e.g. to {bound}")
    return either(remedies)


def _wake(history: History) -> str:
    config = history.config
    remedies: list[str] = []
    if config.optim.name == "sgd":
        remedies.append("set optim.name: adamw, whose step does not shrink with the gradient")
    if config.train.precision == "fp16":
        remedies.append("use train.precision: bf16, in which small gradients are not 0")
    remedies.append("choose a student.model with normalisation or shortcuts between its layers")
    return either(remedies)
