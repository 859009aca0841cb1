from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainable.data.carve import carve
from trainable.data.hashing import draws, mix, permutation
from trainable.data.sampling import Update, balanced_order, epoch_order, shards, updates

samples = st.integers(1, 300)
workers = st.integers(1, 4)


@given(samples, st.integers(0, 2**40), st.integers(0, 10_000))
def test_an_epoch_is_a_permutation_and_a_function_of_its_arguments(samples, seed, epoch) -> None:
    order = epoch_order(samples, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(samples))
    assert np.array_equal(order, epoch_order(samples, seed, epoch))


def test_seeds_and_epochs_give_other_orders() -> None:
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_pinned() -> None:
    """A change here changes every study: it must not come from a NumPy release."""
    assert epoch_order(8, 0, 1).tolist() == [3, 7, 6, 1, 5, 0, 4, 2]
    assert mix(1) == 0x5692161D100B05E5
    # SplitMix64 with seed 1234567, from the reference implementation (Vigna, splitmix64.c).
    assert draws(1234567, 2).tolist() == [6457827717110365317, 3203168211198807973]


def test_every_place_is_equally_likely_for_a_sample() -> None:
    orders = np.stack([permutation(key, 10) for key in map(mix, range(4000))])
    counts = np.stack([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 130  # 81 degrees of freedom; p ≈ 0.0005


@st.composite
def epochs(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `updates` for which there is an epoch."""
    workers = draw(st.integers(1, 4))
    batch_size = draw(st.integers(2 * workers, 64))
    drop_last = draw(st.booleans())
    samples = draw(st.integers(batch_size if drop_last else 2 * workers, 300))
    return {
        "order": epoch_order(samples, draw(st.integers(0, 5)), draw(st.integers(1, 3))),
        "batch_size": batch_size,
        "workers": workers,
        "accumulate": draw(st.integers(1, 5)),
        "drop_last": drop_last,
    }


def cells_of(plans: list[list[Update]]) -> list[list[np.ndarray]]:
    """The cells of each update over all ranks and micro-batches."""
    return [
        [cell for part in parts for cell in part.micro_batches]
        for parts in zip(*plans, strict=True)
    ]


@given(epochs())
def test_an_epoch_has_each_sample_once_over_all_ranks(arguments) -> None:
    plans = [updates(rank=rank, **arguments) for rank in range(arguments["workers"])]
    seen = [int(i) for cells in cells_of(plans) for cell in cells for i in cell]
    assert len(set(seen)) == len(seen)
    left_out = set(range(len(arguments["order"]))) - set(seen)
    if arguments["drop_last"]:
        assert len(left_out) < arguments["batch_size"]
        assert {part.size for part in plans[0]} == {arguments["batch_size"]}
    else:
        assert not left_out


@given(epochs())
def test_an_update_is_shared_evenly_and_its_size_is_that_of_its_cells(arguments) -> None:
    plans = [updates(rank=rank, **arguments) for rank in range(arguments["workers"])]
    for parts, cells in zip(zip(*plans, strict=True), cells_of(plans), strict=True):
        sizes = [len(cell) for cell in cells]
        # Every rank divides by the same size, so that each sample weighs 1 / size.
        assert {part.size for part in parts} == {sum(sizes)}
        assert len({len(part.micro_batches) for part in parts}) == 1
        assert len(parts[0].micro_batches) <= arguments["accumulate"]
        assert min(sizes) >= 2
        assert max(sizes) - min(sizes) <= 1


def test_each_epoch_leaves_other_samples_out() -> None:
    kept = [
        updates(epoch_order(100, 0, epoch), 32, 1, 1, 0, drop_last=True) for epoch in range(1, 6)
    ]
    left_out = [
        frozenset(range(100)) - {int(i) for part in plan for i in part.micro_batches[0]}
        for plan in kept
    ]
    assert [len(left) for left in left_out] == [4] * 5
    assert len(set(left_out)) == 5


@pytest.mark.parametrize(
    ("samples", "batch_size", "workers", "drop_last"),
    [(0, 8, 1, False), (1, 8, 1, False), (7, 8, 4, False), (31, 32, 1, True), (9, 7, 4, False)],
)
def test_a_share_of_fewer_than_two_samples_is_never_handed_out(
    samples: int, batch_size: int, workers: int, drop_last: bool
) -> None:
    """BatchNorm could not take it; without preflight this is where it is met."""
    for rank in range(workers):
        with pytest.raises(ValueError, match="two samples for each of"):
            updates(epoch_order(samples, 0, 1), batch_size, workers, 1, rank, drop_last)


@given(st.integers(64, 300), st.sampled_from([16, 32]), workers, st.integers(1, 2))
def test_workers_and_micro_batches_share_the_same_updates(
    samples, batch_size, workers, accumulate
) -> None:
    order = epoch_order(samples, 7, 3)
    alone = updates(order, batch_size, 1, 1, 0)
    ranks = [updates(order, batch_size, workers, accumulate, r) for r in range(workers)]
    for number, update in enumerate(alone):
        if any(len(plan) <= number or plan[number].size != update.size for plan in ranks):
            # A tail too short for so many workers has joined the update before it.
            assert number >= len(ranks[0]) - 1
            continue
        union = [i for plan in ranks for m in plan[number].micro_batches for i in m]
        assert sorted(union) == sorted(update.micro_batches[0])


labelled = st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=80)


@given(labelled, st.integers(0, 2**40), st.integers(1, 50))
def test_a_balanced_epoch_draws_every_class_equally_often(labels, seed, epoch) -> None:
    labels = np.asarray(labels, dtype=np.int64)
    order = balanced_order(labels, seed, epoch)
    assert order.dtype == np.int64
    assert len(order) == len(labels)  # as many updates as without
    draws = np.unique(labels[order], return_counts=True)
    each = len(labels) / len(set(labels))
    assert draws[0].tolist() == sorted(set(labels))
    assert all(abs(count - each) < 1 for count in draws[1])


@given(labelled, st.integers(0, 5), st.integers(1, 5))
def test_within_a_class_no_sample_comes_twice_before_all_came_once(labels, seed, epoch) -> None:
    labels = np.asarray(labels, dtype=np.int64)
    times = np.bincount(balanced_order(labels, seed, epoch), minlength=len(labels))
    for label in set(labels):
        own = times[labels == label]
        assert own.max() - own.min() <= 1


@given(labelled, st.integers(0, 5), st.integers(1, 5))
def test_a_balanced_order_is_a_function_of_its_arguments(labels, seed, epoch) -> None:
    labels = np.asarray(labels, dtype=np.int64)
    np.random.rand()
    again = balanced_order(labels.copy(), seed, epoch)
    assert np.array_equal(balanced_order(labels, seed, epoch), again)


def test_balanced_epochs_leave_other_samples_of_a_large_class_out() -> None:
    """And the draws that are left over go to other classes."""
    labels = np.repeat(np.arange(3), [60, 5, 5])
    orders = [balanced_order(labels, 0, epoch) for epoch in range(1, 9)]
    assert len({frozenset(order[labels[order] == 0]) for order in orders}) == 8
    left_over = {int(np.bincount(labels[order]).argmax()) for order in orders}
    assert left_over == {0, 1, 2}
    # What is drawn is shuffled: no update has one class alone.
    assert all(len(set(labels[order[:16]])) == 3 for order in orders)


def test_the_balanced_order_is_pinned() -> None:
    """As that of `shuffled`: a change here changes every study that draws so."""
    labels = np.asarray([0, 0, 0, 0, 0, 1, 1, 2])
    assert balanced_order(labels, 0, 1).tolist() == [5, 7, 7, 1, 7, 2, 6, 6]


def test_balanced_samples_are_shared_among_workers_and_micro_batches() -> None:
    order = balanced_order(np.repeat(np.arange(2), [90, 10]), 3, 2)
    plans = [updates(order, 20, 2, 2, rank) for rank in range(2)]
    for number, cells in enumerate(cells_of(plans)):
        assert len(cells) == 4
        drawn = sorted(int(i) for cell in cells for i in cell)
        assert drawn == sorted(order[20 * number : 20 * number + 20])


@given(samples, st.integers(1, 64), workers)
def test_shards_have_each_sample_once_over_all_ranks(samples, batch_size, workers) -> None:
    batches = [b for rank in range(workers) for b in shards(samples, batch_size, workers, rank)]
    assert sorted(np.concatenate(batches)) == list(range(samples))
    assert all(len(batch) <= batch_size for batch in batches)


@pytest.mark.parametrize(("samples", "workers"), [(1025, 2), (10, 6), (3, 4), (1, 1), (1537, 3)])
def test_every_rank_has_as_many_shards_as_the_others(samples: int, workers: int) -> None:
    assert len({len(shards(samples, 512, workers, rank)) for rank in range(workers)}) == 1


def test_shards_of_a_set_sorted_by_class_hold_every_class() -> None:
    labels = np.repeat(np.arange(10), 100)
    for batch in shards(1000, 128, 2, 1):
        assert len(set(labels[batch])) == 10


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 1000),
)
def test_carving_leaves_every_class_on_both_sides(labels, fraction, seed) -> None:
    labels = np.repeat(np.asarray(labels, dtype=np.int64), 2)
    kept, held_out = carve(labels, fraction, seed)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for label in set(labels):
        total, held = (labels == label).sum(), (labels[held_out] == label).sum()
        assert 1 <= held <= total - 1
        assert abs(held - fraction * total) <= 1


def test_carving_nothing_and_carving_what_cannot_be() -> None:
    kept, held_out = carve(np.asarray([0, 1], dtype=np.int64), 0.0, 0)
    assert (len(kept), len(held_out)) == (2, 0)
    with pytest.raises(ValueError, match="class 1 has 1 picture"):
        carve(np.asarray([0, 0, 1], dtype=np.int64), 0.5, 0)


def test_carving_a_class_does_not_depend_on_the_others() -> None:
    labels = np.asarray([0] * 10 + [1] * 10, dtype=np.int64)
    _, alone = carve(labels[:10], 0.3, 5)
    _, both = carve(labels, 0.3, 5)
    assert alone.tolist() == both[both < 10].tolist()
