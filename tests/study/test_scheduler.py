"""ASHA as configured, and what it remembers of trials before this driver."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from study.config import StudyConfig, parse_config, without_search
from study.jobs import Job
from study.scheduler import Curves, build_scheduler


def config(epochs: int, searched: Any = None, **pruner: Any) -> StudyConfig:
    lengths = {} if searched is None else {"train.epochs": searched}
    return parse_config(
        {
            "study": {"name": "s", "pruner": {"name": "asha", **pruner}},
            "storage": {"path": str(Path.cwd())},
            "data": {"source": "digits"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "none"},
            "train": {"epochs": epochs},
            "search": {"optim.lr": {"loguniform": [1e-4, 1.0]}, **lengths},
        }
    )


def as_trial(job: Job) -> Any:
    return SimpleNamespace(
        trial_id=f"{job.role} {job.number} {job.split}", config={"job": job.to_dict()}
    )


def decisions(scheduler: Any, curves: Curves) -> dict[int, int]:
    """The epoch at which each trial, one after the other, is stopped or ends."""
    ends: dict[int, int] = {}
    for number, curve in curves.items():
        trial = as_trial(Job("trial", number))
        scheduler.on_trial_add(None, trial)
        for epoch, value in curve.items():
            ends[number] = epoch
            reported = {"epoch": epoch, "value": value}
            if scheduler.on_trial_result(None, trial, reported) == TrialScheduler.STOP:
                break
    return ends


def flat(value: float, epochs: int) -> dict[int, float]:
    return dict.fromkeys(range(1, epochs + 1), value)


def test_no_pruner_stops_nothing() -> None:
    assert isinstance(build_scheduler(config(9, name="none"), {}), FIFOScheduler)


@pytest.mark.parametrize("searched", [{"int": [4, 60]}, {"choice": [60, 4]}])
def test_the_longest_trial_of_a_search_runs_to_its_end(searched: Any) -> None:
    scheduler = build_scheduler(config(12, searched, grace_epochs=3), {})
    assert decisions(scheduler, {0: flat(0.5, 60)}) == {0: 60}


def test_only_the_best_third_pass_a_rung() -> None:
    curves = {n: flat(value, 9) for n, value in enumerate([0.5, 0.9, 0.6, 0.95, 0.1])}
    assert decisions(build_scheduler(config(9, grace_epochs=3), {}), curves) == {
        0: 9,
        1: 9,
        2: 3,
        3: 9,
        4: 3,
    }


def test_a_single_trial_may_be_shorter_than_the_first_rung() -> None:
    """As `kd-study train --set train.epochs=3` may make it."""
    settings = config(9, grace_epochs=9)
    train = settings.train.model_copy(update={"epochs": 3})
    single = without_search(settings.model_copy(update={"train": train}))
    assert decisions(build_scheduler(single, {}), {0: flat(0.5, 3)}) == {0: 3}


@pytest.mark.parametrize(("epochs", "grace"), [(1, 1), (9, 1), (9, 9), (10, 3)])
def test_trial_without_rivals_ends_by_itself(epochs: int, grace: int) -> None:
    scheduler = build_scheduler(config(epochs, grace_epochs=grace), {})
    assert decisions(scheduler, {0: flat(0.1, epochs)}) == {0: epochs}


@pytest.mark.parametrize("factor", [2.0, 2.5, 3.0])
def test_a_new_driver_decides_as_the_old_one_would_have(factor: float) -> None:
    curves = {n: flat(v, 9) for n, v in enumerate([0.5, 0.9, 0.6, 0.55, 0.95, 0.1, 0.7])}
    settings = config(9, reduction_factor=factor)
    expected = decisions(build_scheduler(settings, {}), curves)
    assert set(expected.values()) > {9}
    for died_after in range(1, len(curves)):
        seen = {
            number: {epoch: v for epoch, v in curve.items() if epoch <= expected[number]}
            for number, curve in curves.items()
        }
        before = dict(list(seen.items())[:died_after])
        after = dict(list(curves.items())[died_after:])
        ends = decisions(build_scheduler(settings, before), after)
        assert ends == {number: expected[number] for number in after}


def test_a_trial_that_begins_again_is_no_rival_of_itself() -> None:
    scheduler: Any = build_scheduler(config(9, grace_epochs=1), {})
    assert decisions(scheduler, {0: {1: 0.5}, 1: {1: 0.9}}) == {0: 1, 1: 1}
    again = SimpleNamespace(trial_id="again", config={"job": Job("trial", 0).to_dict()})
    scheduler.on_trial_add(None, again)
    # The rung has passed it before; judged anew, beside 0.9, it would be stopped.
    reported = {"epoch": 1, "value": 0.5}
    assert scheduler.on_trial_result(None, again, reported) == TrialScheduler.CONTINUE
    (rung,) = [found for epoch, found in scheduler._brackets[0]._rungs if epoch == 1]
    assert sorted(rung.values()) == [0.5, 0.9]


@pytest.mark.parametrize("other", [Job("teacher"), Job("baseline"), Job("trial", 0, split="test")])
def test_other_jobs_are_neither_stopped_nor_rivals(other: Job) -> None:
    scheduler: Any = build_scheduler(config(3, grace_epochs=1), {})
    for value in (0.9, 0.8, 0.1):
        trial = as_trial(other)
        scheduler.on_trial_add(None, trial)
        for epoch in range(1, 9):  # more than a trial has
            reported = {"epoch": epoch, "value": value}
            assert scheduler.on_trial_result(None, trial, reported) == TrialScheduler.CONTINUE
        scheduler.on_trial_complete(None, trial, {"epoch": 9, "value": value})
        scheduler.on_trial_remove(None, trial)
    assert decisions(scheduler, {0: flat(0.01, 3)}) == {0: 3}
