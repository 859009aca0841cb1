"""Trials of two workers, under Ray Train inside Ray Tune, on a cluster with no CPU to spare."""

from __future__ import annotations

from typing import Any

import pytest

from trainable.plan import stages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


def test_trials_of_two_workers_follow_each_other(
    tmp_path_factory: pytest.TempPathFactory, configure: Any, conduct: Any
) -> None:
    config = configure(
        tmp_path_factory.mktemp("workers"),
        study={"trials": 2},
        distill={"method": "stablekd", "alpha": 0.5, "decomposition": "3/1"},
        train={"epochs": 4, "workers": 2, "accumulate": 2},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}},
    )
    left = conduct(config)
    assert left.spy.slots == 1  # two CPUs, two workers: Tune's own actor must not need one
    trials = left.results.of("trial")
    assert [row.state for row in trials] == ["complete", "complete"]
    expected = [stage.number for stage in stages(config, 5) for _ in range(stage.epochs)]
    assert len(set(expected)) == 2
    for row in (*trials, *left.results.of("baseline")):
        history = left.history(row.label)
        assert [step for step, _ in history["val/accuracy"]] == [1, 2, 3, 4]
        stage = [value for _, value in history["train/stage"]]
        assert stage == (expected if row.role == "trial" else [1.0] * 4)
        assert [value for _, value in history["amp/skipped"]] == [0.0] * 4
        losses = [value for _, value in history["train/loss"]]
        assert losses[-1] < losses[0]
    started = [row.label for row in left.spy.started if row.role == "trial"]
    ended = [row.label for row in left.spy.ended if row.role == "trial"]
    assert started == ended == ["trial 0", "trial 1"]
    assert left.results.winner.test_accuracy is not None
