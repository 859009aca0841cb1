"""Groups, stages and updates: pure arithmetic."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainable.config import DataConfig, DistillConfig, OptimConfig, StudentConfig, TrialConfig
from trainable.config import TrainConfig as Train
from trainable.engine.schedule import learning_rates
from trainable.plan import (
    Decomposition,
    head_stays_alone,
    initial_groups,
    largest_n,
    micro_batch_sizes,
    peak_learning_rate,
    recompose,
    schedule_of,
    stages,
    update_sizes,
)


def stablekd(
    decomposition: str, epochs: int, stage_epochs: tuple[int, ...] | None = None, **optim: object
) -> TrialConfig:
    return TrialConfig(
        data=DataConfig(source="digits"),
        student=StudentConfig(model="resnet18"),
        distill=DistillConfig(
            method="stablekd", alpha=0.5, decomposition=decomposition, stage_epochs=stage_epochs
        ),
        optim=OptimConfig.model_validate(optim),
        train=Train(epochs=epochs),
    )


def grouped(blocks: int, k: int) -> list[str]:
    """Groups as text: `12 34 5`."""
    groups = initial_groups(blocks, k)
    return ["".join(str(b + 1) for b in range(*group)) for group in groups]


@pytest.mark.parametrize(
    ("blocks", "k", "expected"),
    [
        (5, 1, "12345"),
        (5, 2, "1234 5"),
        (5, 3, "12 34 5"),
        (5, 4, "12 3 4 5"),
        (5, 5, "1 2 3 4 5"),
        (8, 4, "123 45 67 8"),
        (9, 4, "123 456 78 9"),
        (9, 6, "12 34 56 7 8 9"),
    ],
)
def test_the_head_is_alone_and_earlier_groups_are_larger(
    blocks: int, k: int, expected: str
) -> None:
    assert grouped(blocks, k) == expected.split()


ALL_BLOCKS_AND_K = [(blocks, k) for blocks in range(1, 13) for k in range(1, min(9, blocks) + 1)]


@pytest.mark.parametrize(("blocks", "k"), ALL_BLOCKS_AND_K)
def test_groups_partition_the_blocks_at_every_stage(blocks: int, k: int) -> None:
    groups = initial_groups(blocks, k)
    sizes = [stop - start for start, stop in groups]
    assert len(groups) == k
    assert k == 1 or groups[-1] == (blocks - 1, blocks)
    assert all(earlier >= later for earlier, later in pairwise(sizes))
    assert k == 1 or max(sizes[:-1]) - min(sizes[:-1]) <= 1
    for _ in range(largest_n(k) + 1):
        assert (groups[0][0], groups[-1][1]) == (0, blocks)
        assert all(one[1] == other[0] for one, other in pairwise(groups))
        assert all(start < stop for start, stop in groups)
        merged = recompose(groups)
        assert len(merged) == -(-len(groups) // 2)
        groups = merged
    assert groups == ((0, blocks),)


@pytest.mark.parametrize(("blocks", "k"), ALL_BLOCKS_AND_K)
def test_every_n_that_k_allows_is_a_plan_of_whole_groups(blocks: int, k: int) -> None:
    """Blocks from 0; stage i is the first one with 2^i groups at a time made one."""
    first = initial_groups(blocks, k)
    for n in range(largest_n(k) + 1):
        plan = stages(stablekd(f"{k}/{n}", epochs=7), blocks)
        assert [stage.number for stage in plan] == list(range(1, n + 2))
        for index, stage in enumerate(plan):
            size = 2**index
            together = [first[i : i + size] for i in range(0, k, size)]
            assert stage.groups == tuple((merged[0][0], merged[-1][1]) for merged in together)
            assert [block for group in stage.groups for block in range(*group)] == [*range(blocks)]
    assert len(plan[-1].groups) == 1
    with pytest.raises(ValueError, match="cannot run"):
        stages(stablekd(f"{k}/{largest_n(k) + 1}", epochs=7), blocks)


def test_the_head_stays_alone_while_merged_counts_are_odd() -> None:
    def alone(decomposition: str) -> bool:
        return stages(stablekd(decomposition, epochs=7), 9)[-1].groups[-1] == (8, 9)

    assert all(map(alone, ["3/1", "5/1", "5/2", "7/1", "9/3"]))
    assert not any(map(alone, ["2/1", "3/2", "4/1", "5/3", "7/2", "9/4"]))


@pytest.mark.parametrize(("blocks", "k"), ALL_BLOCKS_AND_K)
def test_whether_the_head_stays_alone_does_not_depend_on_the_blocks(blocks: int, k: int) -> None:
    for n in range(largest_n(k) + 1):
        last = [stage.groups[-1] for stage in stages(stablekd(f"{k}/{n}", epochs=7), blocks)]
        is_alone = k > 1 and all(group == (blocks - 1, blocks) for group in last)
        assert head_stays_alone(Decomposition(k, n)) == is_alone


@given(st.integers(1, 2**60))
def test_largest_n_is_the_first_that_leaves_one_group(k: int) -> None:
    count, n = k, 0
    while count > 1:
        count, n = -(-count // 2), n + 1
    assert largest_n(k) == n


@pytest.mark.parametrize("k", [0, -1, 6])
def test_more_groups_than_blocks_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"1 <= k <= 5 must hold, but got k = {k}"):
        initial_groups(5, k)


def test_5_2_recomposes_to_3_and_to_2_groups() -> None:
    first, second, third = stages(stablekd("5/2", 12, lr=0.4), 5)
    assert first.groups == ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5))
    assert second.groups == ((0, 2), (2, 4), (4, 5))
    assert third.groups == ((0, 4), (4, 5))
    assert [stage.peak_lr for stage in (first, second, third)] == [0.4, 0.2, 0.1]


def test_the_last_stage_takes_the_epochs_that_are_left() -> None:
    plan = stages(stablekd("5/2", 20), 5)
    assert [(stage.number, stage.first_epoch, stage.epochs) for stage in plan] == [
        (1, 1, 6),
        (2, 7, 6),
        (3, 13, 8),
    ]


@given(st.integers(1, 9), st.integers(0, 4), st.integers(1, 300))
def test_stages_cover_every_epoch_once(k: int, n: int, epochs: int) -> None:
    if n > largest_n(k) or epochs < n + 1:
        with pytest.raises(ValueError, match="cannot run"):
            stages(stablekd(f"{k}/{n}", epochs), 9)
        return
    plan = stages(stablekd(f"{k}/{n}", epochs), 9)
    covered = [stage.first_epoch + i for stage in plan for i in range(stage.epochs)]
    assert covered == list(range(1, epochs + 1))
    assert {stage.epochs for stage in plan[:-1]} <= {epochs // (n + 1)}


def test_stages_take_the_epochs_that_they_are_given() -> None:
    plan = stages(stablekd("5/2", 20, (3, 7, 10)), 5)
    spans = [(stage.first_epoch, stage.last_epoch, stage.epochs) for stage in plan]
    assert spans == [(1, 3, 3), (4, 10, 7), (11, 20, 10)]
    even = stages(stablekd("5/2", 20), 5)
    assert [stage.groups for stage in plan] == [stage.groups for stage in even]
    assert stages(stablekd("5/2", 20, (6, 6, 8)), 5) == even


@pytest.mark.parametrize("given_epochs", [(10, 10), (6, 6, 7), (6, 6, 9), (5, 5, 5, 5), ()])
def test_epochs_that_do_not_make_up_the_trial_are_refused(given_epochs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"3 stage\(s\) of .* cannot run in 20 epoch\(s\)"):
        stages(stablekd("5/2", 20, given_epochs), 5)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1.0, [6, 6, 8]),
        (None, [6, 6, 8]),
        (2.0, [3, 5, 12]),
        (0.5, [10, 5, 5]),
        (1e-9, [17, 1, 2]),
        (1e9, [1, 1, 18]),
        (1e300, [1, 1, 18]),
    ],
)
def test_a_ratio_makes_each_stage_so_much_longer(ratio: float | None, expected: list[int]) -> None:
    config = stablekd("5/2", 20)
    config = config.model_copy(
        update={"distill": config.distill.model_copy(update={"stage_split": ratio})}
    )
    assert [stage.epochs for stage in stages(config, 5)] == expected


@pytest.mark.parametrize(
    ("decomposition", "epochs", "ratio", "expected"),
    [("5/1", 9, 6.0, [2, 7]), ("5/2", 68, 3.0, [6, 16, 46])],
)
def test_a_share_of_whole_epochs_is_not_rounded_down(
    decomposition: str, epochs: int, ratio: float, expected: list[int]
) -> None:
    """7/7 and 65·(1, 3)/13, which are a little less in real numbers."""
    config = stablekd(decomposition, epochs)
    config = config.model_copy(
        update={"distill": config.distill.model_copy(update={"stage_split": ratio})}
    )
    assert [stage.epochs for stage in stages(config, 5)] == expected


@given(st.integers(0, 4), st.integers(1, 300), st.floats(1e-3, 1e3))
def test_any_ratio_gives_every_stage_an_epoch(n: int, epochs: int, ratio: float) -> None:
    config = stablekd(f"9/{n}", epochs)
    config = config.model_copy(
        update={"distill": config.distill.model_copy(update={"stage_split": ratio})}
    )
    if epochs < n + 1:
        with pytest.raises(ValueError, match="cannot run"):
            stages(config, 9)
        return
    spans = [stage.epochs for stage in stages(config, 9)]
    assert sum(spans) == epochs
    assert min(spans) >= 1
    for earlier, later in pairwise(spans[:-1]):
        assert (later >= earlier) if ratio >= 1 else (later <= earlier)


@pytest.mark.parametrize(
    ("optim", "batch_size", "expected"),
    [
        ({"lr": 0.2}, 512, 0.2),
        ({"lr": 0.2, "lr_batch_size": 128}, 128, 0.2),
        ({"lr": 0.2, "lr_batch_size": 128}, 512, 0.8),
        ({"lr": 0.2, "lr_batch_size": 128}, 96, 0.15),
        ({"lr": 0.2, "lr_batch_size": 128, "name": "adamw"}, 512, 0.4),
        ({"lr": 0.2, "lr_batch_size": 128, "name": "adamw"}, 32, 0.1),
    ],
)
@pytest.mark.parametrize("schedule", ["triangle", "onecycle", "cosine", "multistep"])
def test_the_peak_follows_the_batch_size_on_request(
    optim: dict[str, object], batch_size: int, expected: float, schedule: str
) -> None:
    """Each schedule reaches it; of two stages, the first."""
    config = stablekd("3/1", 6, schedule=schedule, warmup_fraction=0.25, milestones=(3,), **optim)
    config = config.model_copy(update={"data": DataConfig(source="digits", batch_size=batch_size)})
    assert peak_learning_rate(config) == pytest.approx(expected)
    plan = stages(config, 5)
    assert plan[0].peak_lr == pytest.approx(expected)
    assert max(learning_rates(config, plan, 1001)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "multistep"])
def test_a_schedule_that_spans_all_stages_has_one_peak(schedule: str) -> None:
    plan = stages(stablekd("5/2", 6, lr=0.2, schedule=schedule), 5)
    assert [stage.peak_lr for stage in plan] == [0.2, 0.2, 0.2]


def test_the_peak_stays_under_onecycle_and_decays_as_asked_under_triangle() -> None:
    onecycle = stages(stablekd("3/1", 4, lr=0.2, schedule="onecycle"), 5)
    assert [stage.peak_lr for stage in onecycle] == [0.2, 0.2]
    triangle = stages(stablekd("3/1", 4, lr=0.2, peak_decay=0.25), 5)
    assert [stage.peak_lr for stage in triangle] == [0.2, 0.05]


@pytest.mark.parametrize("method", ["none", "kd", "kd_mse"])
def test_other_methods_have_one_stage_of_one_group(method: str) -> None:
    config = stablekd("5/2", 7).model_copy(
        update={"distill": DistillConfig.model_validate({"method": method, "alpha": 0.5})}
    )
    (stage,) = stages(config, 5)
    assert (stage.first_epoch, stage.epochs, stage.groups) == (1, 7, ((0, 5),))


@pytest.mark.parametrize(
    ("method", "schedule", "expected"),
    [
        ("stablekd", "auto", "triangle"),
        ("kd", "auto", "onecycle"),
        ("kd", "triangle", "triangle"),
        ("stablekd", "onecycle", "onecycle"),
        ("stablekd", "cosine", "cosine"),
        ("kd", "multistep", "multistep"),
    ],
)
def test_auto_is_the_schedule_of_the_method(method: str, schedule: str, expected: str) -> None:
    distill = DistillConfig.model_validate({"method": method})
    assert schedule_of(distill, OptimConfig.model_validate({"schedule": schedule})) == expected


def test_a_decomposition_reads_as_it_is_written() -> None:
    assert Decomposition.parse("5/2") == Decomposition(5, 2)
    assert str(Decomposition(5, 2)) == "5/2"


@pytest.mark.parametrize("text", ["5", "5/", "/2", "5/2/1", "5.0/2", "-1/2", " 5/2"])
def test_a_decomposition_that_is_not_k_over_n_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be written k/n"):
        Decomposition.parse(text)


@given(st.integers(0, 2000), st.integers(1, 200), st.integers(1, 8))
def test_updates_hold_every_sample_once(samples: int, batch_size: int, workers: int) -> None:
    batch_size, samples = max(batch_size, 2 * workers), max(samples, 2 * workers)
    sizes = update_sizes(samples, batch_size, workers)
    assert sum(sizes) == samples
    assert all(size == batch_size for size in sizes[:-1])
    assert all(size >= 2 * workers for size in sizes)
    assert sizes[-1] < batch_size + 2 * workers


@given(st.integers(1, 2000), st.integers(1, 200), st.integers(1, 8))
def test_with_drop_last_updates_are_whole(samples: int, batch_size: int, workers: int) -> None:
    batch_size = max(batch_size, 2 * workers)
    if samples < batch_size:
        with pytest.raises(ValueError, match=f"got {samples} in updates of {batch_size}"):
            update_sizes(samples, batch_size, workers, drop_last=True)
        return
    sizes = update_sizes(samples, batch_size, workers, drop_last=True)
    assert sizes == (batch_size,) * (samples // batch_size)


@pytest.mark.parametrize(
    ("samples", "batch_size", "workers", "expected"),
    [
        (256, 128, 1, (128, 128)),
        (257, 128, 1, (128, 129)),
        (258, 128, 1, (128, 128, 2)),
        (258, 128, 2, (128, 130)),
        (2, 128, 1, (2,)),
    ],
)
def test_a_tail_too_small_for_batchnorm_joins_the_update_before(
    samples: int, batch_size: int, workers: int, expected: tuple[int, ...]
) -> None:
    assert update_sizes(samples, batch_size, workers) == expected


@pytest.mark.parametrize(
    ("samples", "batch_size", "workers"), [(0, 128, 1), (1, 128, 1), (7, 128, 4), (100, 7, 4)]
)
def test_a_rank_with_one_sample_or_none_is_refused(
    samples: int, batch_size: int, workers: int
) -> None:
    with pytest.raises(ValueError, match=f"two samples for each of {workers} worker"):
        update_sizes(samples, batch_size, workers)
    update = min(samples, batch_size)
    with pytest.raises(ValueError, match=rf"update >= {2 * workers} must hold.* got {update}"):
        micro_batch_sizes(update, workers, 1)


@given(st.integers(16, 600), st.integers(1, 8), st.integers(1, 16))
def test_micro_batches_share_an_update_evenly(update: int, workers: int, accumulate: int) -> None:
    rows = micro_batch_sizes(update, workers, accumulate)
    cells = [cell for row in rows for cell in row]
    assert sum(cells) == update
    assert {len(row) for row in rows} == {workers}
    assert 1 <= len(rows) <= accumulate
    assert max(cells) - min(cells) <= 1
    assert min(cells) >= 2
    if update >= 2 * workers * accumulate:
        assert len(rows) == accumulate
