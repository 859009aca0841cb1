"""Intervals, against values that were worked out by hand and from tables of Student's t."""

from __future__ import annotations

import math
import random

import pytest
from scipy.stats import ttest_ind

from study.noise import mean_interval, other_pictures_margin, same_pictures_margin, welch_interval


def test_the_interval_of_a_mean() -> None:
    found = mean_interval([0.90, 0.92, 0.94])  # sd 0.02; t(2) is 4.3027
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.92 - 0.049683, 0.92 + 0.049683), abs=1e-6)
    assert found.degrees == 2


def test_welchs_interval_of_a_difference() -> None:
    """Variances 1 and 4 over 3 and 5: ν = (1/3 + 4/5)² / ((1/3)²/2 + (4/5)²/4) = 5.959; t(6) is 2.4469, t(5) 2.5706,
    and between them, evenly in 1/ν, t(ν) is 2.451."""
    ours, theirs = [9.0, 10.0, 11.0], [4.0, 4.0, 6.0, 8.0, 8.0]
    found = welch_interval(ours, theirs)
    assert found is not None
    assert found.degrees == pytest.approx((1 / 3 + 4 / 5) ** 2 / (1 / 18 + 0.64 / 4))
    half = 2.451 * math.sqrt(1 / 3 + 4 / 5)
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half), abs=5e-4)
    assert not found.holds_zero


def test_equal_sizes_and_variances_have_students_degrees_of_freedom() -> None:
    found = welch_interval([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    assert found is not None
    assert found.degrees == pytest.approx(4)
    half = 2.7764 * 0.1 * math.sqrt(2 / 3)  # t(4)
    assert (found.low, found.high) == pytest.approx((-0.1 - half, -0.1 + half), abs=1e-5)
    assert found.holds_zero


@pytest.mark.parametrize("sizes", [(2, 2), (3, 7), (10, 4)])
def test_it_is_what_scipys_test_of_unequal_variances_gives(sizes: tuple[int, int]) -> None:
    draw = random.Random(sizes[0])
    ours, theirs = ([draw.gauss(0.9, 0.01 * n) for _ in range(n)] for n in sizes)
    found = welch_interval(ours, theirs)
    known = ttest_ind(ours, theirs, equal_var=False)
    assert found is not None
    assert found.degrees == pytest.approx(known.df)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_the_interval_turns_with_the_sides() -> None:
    ours, theirs = [0.5, 0.7, 0.9, 0.6], [0.4, 0.5]
    one, other = welch_interval(ours, theirs), welch_interval(theirs, ours)
    assert one is not None
    assert other is not None
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


@pytest.mark.parametrize(
    ("ours", "theirs"), [([], [0.5, 0.6]), ([0.5], [0.5, 0.6]), ([0.5, 0.5], [0.6, 0.6])]
)
def test_without_a_spread_there_is_no_interval(ours: list[float], theirs: list[float]) -> None:
    assert welch_interval(ours, theirs) is None
    assert welch_interval(theirs, ours) is None


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5, 0.5]])
def test_nor_is_there_one_of_a_mean(values: list[float]) -> None:
    assert mean_interval(values) is None


def test_the_margin_on_the_same_pictures_by_hand() -> None:
    """0.9 and 0.8 on 400: at most 0.3 disagree, √((0.3 − 0.01)/400) = 0.026926."""
    assert same_pictures_margin(0.9, 0.8, 400) == pytest.approx(1.959964 * 0.026926, abs=1e-6)
    assert same_pictures_margin(0.1, 0.2, 400) == same_pictures_margin(0.9, 0.8, 400)
    assert same_pictures_margin(1.0, 1.0, 400) == 0


def test_the_margin_on_other_pictures_by_hand() -> None:
    """0.9 of 100 and 0.8 of 400: √(0.0009 + 0.0004) = 0.0360555."""
    assert other_pictures_margin((0.9, 100), (0.8, 400)) == pytest.approx(0.0360555 * 1.959964)
    assert other_pictures_margin((1.0, 5), (0.0, 5)) == 0


def test_no_pair_of_networks_exceeds_the_margin() -> None:
    """Every way in which two networks can agree on 6 pictures: the variance from their answers is never larger."""
    n = 6
    for both in range(n + 1):
        for first in range(n + 1 - both):
            for second in range(n + 1 - both - first):
                ours, theirs = (both + first) / n, (both + second) / n
                variance = (first + second) / n - (ours - theirs) ** 2
                exact = 1.959964 * math.sqrt(max(0.0, variance) / n)
                assert exact <= same_pictures_margin(ours, theirs, n) + 1e-12
