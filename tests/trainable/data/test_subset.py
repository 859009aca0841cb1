"""Training on a share of the pictures: which, and what stays as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainable.config import DataConfig
from trainable.data.carve import subset
from trainable.data.store import check_data, open_dataset, open_test

Make = Callable[..., DataConfig]
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


def digits(**settings: object) -> DataConfig:
    return DataConfig.model_validate({"source": "digits", "val_fraction": 0.1, **settings})


@given(
    st.lists(st.integers(0, 4), max_size=200),
    st.floats(0.001, 1),
    st.floats(0.001, 1),
    st.integers(0, 99),
)
def test_a_subset_is_a_share_of_each_class_and_part_of_every_larger_one(
    labels: list[int], one: float, other: float, seed: int
) -> None:
    array = np.asarray(labels, dtype=np.int64)
    rows = np.flatnonzero(np.arange(len(array)) % 3 > 0)
    small, large = (subset(array, rows, share, seed) for share in sorted((one, other)))
    assert set(small) <= set(large) <= set(rows)
    assert small.tolist() == sorted(small)
    for label in set(labels):
        count = int((array[rows] == label).sum())
        wanted = max(1, round(min(one, other) * count)) if count else 0
        assert int((array[small] == label).sum()) == wanted


def test_which_pictures_follows_from_the_seed() -> None:
    labels = np.repeat(np.arange(3), 40)
    rows = np.arange(120)
    drawn = [tuple(subset(labels, rows, 0.3, seed)) for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize("loader", ["auto", "streamed"])
def test_only_the_training_pictures_are_fewer(cache: Path, loader: str) -> None:
    data = [open_dataset(digits(subset=share, loader=loader), cache) for share in SHARES]
    whole = data[-1]
    for smaller, larger in itertools.pairwise(data):
        assert set(smaller.train.rows) < set(larger.train.rows)
    for share, part in zip(SHARES, data, strict=True):
        counts = np.bincount(part.train.labels)
        assert counts.tolist() == [round(share * n) for n in np.bincount(whole.train.labels)]
        assert part.val is not None
        assert whole.val is not None
        assert np.array_equal(part.val.rows, whole.val.rows)
        assert (part.mean, part.std) == (whole.mean, whole.std), "the teacher's pictures, too"
        assert part.train.images(np.arange(3)).shape == (3, 3, 8, 8)
    assert len(open_test(digits(subset=0.2), cache)) == len(open_test(digits(), cache))


def test_unseen_classes_stay_whole_and_change_no_other(cache: Path) -> None:
    part = open_dataset(digits(subset=0.3, unseen_classes=("3", "9")), cache)
    whole = open_dataset(digits(unseen_classes=("3", "9")), cache)
    assert part.unseen is not None
    assert whole.unseen is not None
    assert np.array_equal(part.unseen.rows, whole.unseen.rows)
    hidden = {*part.unseen.rows.tolist()}
    of_all = open_dataset(digits(subset=0.3), cache).train.rows
    assert [row for row in of_all.tolist() if row not in hidden] == part.train.rows.tolist()


def test_a_class_keeps_at_least_one_picture(parquet_set: Make, cache: Path) -> None:
    data = open_dataset(parquet_set(val_fraction=0.0, subset=0.01), cache)
    assert sorted(data.train.labels) == [0, 1, 2]


@pytest.mark.parametrize("loader", ["auto", "streamed"])
def test_the_check_counts_what_is_used(cache: Path, loader: str) -> None:
    config = digits(subset=0.25, loader=loader)
    summary, whole = check_data(config, cache), check_data(digits(loader=loader), cache)
    assert summary.train == len(open_dataset(config, cache).train)
    assert summary.train + summary.left_out == whole.train
    assert (summary.val, summary.test, whole.left_out) == (whole.val, whole.test, 0)
    assert summary.fingerprint == whole.fingerprint, "a teacher learns from all of them"


@pytest.mark.parametrize("share", [0, -0.1, 1.01])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValidationError, match="subset"):
        digits(subset=share)
