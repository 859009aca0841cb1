"""How far a difference of accuracies can be luck: pure functions of a few numbers.

Accuracies are shares in [0, 1]. A standard deviation is over seeds, with n − 1 in its denominator. What is
said here of the formulas, and what they leave out, is in docs/trust.md at length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

from scipy.special import stdtrit

LEVEL = 0.95
"""Share of intervals that hold the true value, if the seeds' accuracies are normally distributed."""
_NORMAL = 1.959964
"""The normal distribution's quantile for a two-sided interval of that level."""


@dataclass(frozen=True)
class Interval:
    """Where a mean, or a difference of means, lies at `LEVEL`."""

    low: float
    high: float
    degrees: float
    """Degrees of freedom of Student's t."""

    @property
    def holds_zero(self) -> bool:
        """Whether it may be no difference at all."""
        return self.low <= 0 <= self.high


def mean_interval(values: Sequence[float]) -> Interval | None:
    """mean ± t(n − 1)·sd/√n; None of fewer than two values, and of equal ones, which show no spread."""
    if len(values) < 2 or (spread := stdev(values)) == 0:
        return None
    return _around(fmean(values), spread / math.sqrt(len(values)), len(values) - 1)


def welch_interval(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """Of mean(ours) − mean(theirs), with unequal variances, s² each, of unpaired seeds (Welch 1947).

    difference ± t(ν)·√(s₁²/n₁ + s₂²/n₂), ν = (s₁²/n₁ + s₂²/n₂)² / ((s₁²/n₁)²/(n₁ − 1) + (s₂²/n₂)²/(n₂ − 1)).
    None where either has fewer than two values, or neither shows any spread.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    parts = [(variance(values) / len(values), len(values) - 1) for values in (ours, theirs)]
    squared = sum(part for part, _ in parts)
    if squared == 0:
        return None
    degrees = squared**2 / sum(part**2 / less for part, less in parts)
    return _around(fmean(ours) - fmean(theirs), math.sqrt(squared), degrees)


def same_pictures_margin(ours: float, theirs: float, pictures: int) -> float:
    """How far two networks' accuracies on the same pictures may lie apart by the choice of the pictures, at most.

    1.96·√((q − (p₁ − p₂)²)/n): q, the share of pictures that one gets right and the other wrong, is not kept, and is
    at most min(p₁ + p₂, 2 − p₁ − p₂). So the true margin is this one or smaller.
    """
    difference = ours - theirs
    disagreeing = min(ours + theirs, 2 - ours - theirs)
    return _NORMAL * math.sqrt(max(0.0, disagreeing - difference**2) / pictures)


def other_pictures_margin(ours: tuple[float, int], theirs: tuple[float, int]) -> float:
    """How far one network's accuracies on two sets may lie apart by their choice, each (accuracy p, pictures n).

    1.96·√(p₁(1 − p₁)/n₁ + p₂(1 − p₂)/n₂), for pictures drawn alike.
    """
    return _NORMAL * math.sqrt(sum(p * (1 - p) / n for p, n in (ours, theirs)))


def _around(middle: float, error: float, degrees: float) -> Interval:
    half = float(stdtrit(degrees, (1 + LEVEL) / 2)) * error
    return Interval(middle - half, middle + half, degrees)
