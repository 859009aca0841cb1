"""Trials of two workers, under Ray Train inside Ray Tune, on a cluster with no CPU to spare."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from study.config import parse_config, with_values, without_search
from tests.trainable.trials import OF_THE_MACHINE
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


def groups_of(config: Any) -> int:
    """Worker groups that a study has set up; each has a folder of Ray Train's."""
    return len(list((config.folder / "ray" / "workers").iterdir()))


def curves(left: Any, label: str) -> dict[str, Any]:
    history = left.history(label)
    for name in (*OF_THE_MACHINE, "test/accuracy"):
        history.pop(name, None)
    return history


PRUNED: dict[str, Any] = {
    "study": {"trials": 4, "pruner": {"name": "asha", "grace_epochs": 1}},
    "train": {"epochs": 3, "workers": 2},
    "search": {"optim.lr": {"loguniform": [1e-4, 0.1]}},
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, configure: Any, conduct: Any) -> Any:
    return conduct(configure(tmp_path_factory.mktemp("pruned"), **PRUNED))


def test_one_group_takes_all_jobs_and_outlives_a_pruned_trial(pruned: Any) -> None:
    states = [row.state for row in pruned.results.of("trial")]
    assert set(states) == {"complete", "pruned"}
    assert "pruned" in states[:-1]  # the group went on
    assert groups_of(pruned.config) == 1
    for row in pruned.results.of("trial"):
        assert [step for step, _ in pruned.history(row.label)["val/accuracy"]] == list(
            range(1, row.epochs + 1)
        )


def test_a_group_that_was_used_gives_the_numbers_of_a_fresh_one(
    pruned: Any, tmp_path: Path, conduct: Any
) -> None:
    row = pruned.results.of("trial")[-1]
    tree = pruned.config.model_dump(mode="json", by_alias=True, exclude_none=True)
    values = {path: row.params[path] for path in pruned.config.search}
    tree = with_values(tree, {**values, "storage.path": str(tmp_path)})
    fresh = conduct(without_search(parse_config({**tree, "search": {}})))
    assert groups_of(fresh.config) == 1
    ours = {
        name: [(step, value) for step, value in points if step <= row.epochs]
        for name, points in curves(fresh, "trial 0").items()
    }
    assert {name: points for name, points in ours.items() if points} == curves(pruned, row.label)
    assert len(ours["val/accuracy"]) == row.epochs


@pytest.mark.chaos
def test_a_killed_worker_ends_its_group_and_the_trial_goes_on_in_another(
    pruned: Any, tmp_path: Path, configure: Any, conduct: Any, make_spy: Any
) -> None:
    spy = make_spy()
    killed = list[int]()

    def at_epoch(row: Any, record: Any) -> None:
        if (row.label, record.epoch) == ("trial 0", 2) and not killed:
            worker = next(p for p in psutil.process_iter() if "TrainWorker" in "".join(p.cmdline()))
            killed.append(worker.pid)
            worker.send_signal(signal.SIGKILL)

    spy.at_epoch = at_epoch
    left = conduct(
        configure(tmp_path, **PRUNED | {"study": {**PRUNED["study"], "max_failures": 1}}), spy
    )
    assert len(killed) == 1
    started = [row.label for row in spy.started if row.role == "trial"]
    assert started == ["trial 0", "trial 0", "trial 1", "trial 2", "trial 3"]
    assert groups_of(left.config) == 2
    for row in left.results.of("trial"):
        assert curves(left, row.label) == curves(pruned, row.label)


def test_two_groups_work_at_once(tmp_path: Path, configure: Any, conduct: Any) -> None:
    config = configure(
        tmp_path,
        study={"trials": 4},
        train={"epochs": 2, "launcher": "torch_trainer"},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}},
    )
    left = conduct(config)
    assert left.spy.slots == 2
    assert [row.state for row in left.results.of("trial")] == ["complete"] * 4
    assert groups_of(config) == 2
