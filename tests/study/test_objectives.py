"""What is sought and bounded: fronts, constraints, and what a study's Optuna is told of them."""

from __future__ import annotations

from itertools import permutations, repeat
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import TrialState

from study import trials
from study.config import StudyConfig, parse_config
from study.jobs import Job
from study.objectives import broken, excesses, pareto_front
from study.optuna_storage import AwayError
from study.optuna_study import ended_curves, ended_states, open_study, prune, unfinished
from study.search import StudySearch
from tests.study.test_search import EPOCHS, journalled, result, suggest
from trainable.errors import ConfigError

BOTH = ("accuracy", "latency")
SMALL = st.integers(0, 3).map(float)
POINTS = st.lists(st.fixed_dictionaries(dict.fromkeys(BOTH, SMALL)), max_size=12)


def front(*points: tuple[float, float]) -> tuple[int, ...]:
    told = {n: dict(zip(BOTH, point, strict=True)) for n, point in enumerate(points)}
    return pareto_front(told, BOTH)


def test_a_front_has_what_no_other_betters() -> None:
    assert front() == ()
    assert front((0.9, 2.0), (0.8, 1.0), (0.8, 2.0), (0.7, 1.5)) == (0, 1)
    assert front((0.9, 2.0), (0.9, 1.0)) == (1,)  # as good in one, better in the other


def test_equals_are_on_the_front_together_or_not_at_all() -> None:
    assert front((0.9, 2.0), (0.9, 2.0), (0.5, 3.0), (0.5, 3.0)) == (0, 1)


def test_of_one_objective_the_best_are_the_front() -> None:
    told = {n: {"parameters": value} for n, value in enumerate((3.0, 1.0, 2.0, 1.0))}
    assert pareto_front(told, ("parameters",)) == (1, 3)


@settings(max_examples=100)
@given(POINTS)
def test_it_is_what_comparing_all_with_all_gives(points: list[dict[str, float]]) -> None:
    told = dict(enumerate(points))

    def dominates(a: dict[str, float], b: dict[str, float]) -> bool:
        no_worse = a["accuracy"] >= b["accuracy"] and a["latency"] <= b["latency"]
        return no_worse and a != b

    beaten = {j for i, j in permutations(told, 2) if dominates(told[i], told[j])}
    assert pareto_front(told, BOTH) == tuple(n for n in told if n not in beaten)


def test_how_far_a_bound_is_broken_is_a_share_of_it() -> None:
    bounds = {"accuracy": 0.8, "latency": 2.0, "parameters": 100.0}
    values = {"accuracy": 0.6, "latency": 3.0, "training_seconds": 9.0}
    assert excesses(bounds, values) == pytest.approx({"accuracy": 0.25, "latency": 0.5})
    assert broken(bounds, values) == ("accuracy", "latency")
    assert broken(bounds, {"accuracy": 0.8, "latency": 2.0, "parameters": 100.0}) == ()


def sought(folder: Path, **study: Any) -> StudyConfig:
    kind = {"objectives": ["latency", "accuracy"], "constraints": {"latency": 2, "accuracy": 0.5}}
    return journalled(folder, **{**kind, **study})


def told(epoch: int, value: float, latency: float = 1.0) -> dict[str, Any]:
    costs = [("student/latency_ms", latency)] if epoch == EPOCHS else []
    return result(epoch, value) | {"metrics": costs}


def play(search: StudySearch, name: str, values: list[float], latency: float = 1.0) -> Job:
    job = suggest(search, name)
    for epoch, value in enumerate(values, start=1):
        search.on_trial_result(name, told(epoch, value, latency))
    search.on_trial_complete(name, told(len(values), values[-1], latency))
    return job


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_optuna_is_told_all_objectives_and_what_became_of_trials(
    tmp_path: Path, sampler: str
) -> None:
    here = sought(tmp_path / "s", sampler=sampler)
    study = open_study(here)
    assert study.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    search = StudySearch(here, study, repeat("trial"))
    play(search, "a", [0.3, 0.9, 0.5], 3.0)
    play(search, "b", [0.1, 0.2])
    failed = suggest(search, "c")
    search.on_trial_result("c", told(1, 0.7))
    search.on_trial_complete("c", error=True)
    search.failed(failed)
    left = suggest(search, "d")
    search.on_trial_result("d", told(1, 0.4))

    study = open_study(here)  # by another driver
    complete, pruned, fail, running = study.get_trials()
    assert (complete.state, complete.values) == (TrialState.COMPLETE, [3.0, 0.9])
    assert complete.constraints == pytest.approx({"accuracy": -0.8, "latency": 0.5})
    assert (pruned.state, pruned.values, pruned.constraints) == (TrialState.PRUNED, None, {})
    assert (fail.state, running.state) == (TrialState.FAIL, TrialState.RUNNING)
    assert ended_curves(study) == {0: {1: 0.3, 2: 0.9, 3: 0.5}, 1: {1: 0.1, 2: 0.2}, 2: {1: 0.7}}
    again = StudySearch(here, study, repeat("trial"))
    assert suggest(again, "e") == left
    again.on_trial_result("e", told(1, 0.4))
    again.on_trial_result("e", told(2, 0.3))
    again.on_trial_complete("e", told(EPOCHS, 0.2))
    assert study.get_trials()[3].values == [1.0, 0.4]  # its best epoch was under the first driver
    stopped = suggest(again, "f")
    prune(study, stopped)
    assert (ended_states(study)[4], unfinished(study)) == ("pruned", [])


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "cmaes"])
def test_a_trial_that_is_known_to_break_a_constraint_is_stopped_before_it_begins(
    tmp_path: Path, sampler: str
) -> None:
    pytest.importorskip("cmaes")
    here = journalled(tmp_path / "s", sampler=sampler, constraints={"parameters": 100})
    kept_back: list[Job] = []

    def known_before(job: Job) -> dict[str, float]:
        if job.number % 3 == 0:
            return {}
        kept_back.append(job)
        return {"parameters": 150.0}

    study, test = open_study(here), Job("trial", 3, split="test")
    search = StudySearch(here, study, iter([*["trial"] * 6, test]), known_before=known_before)
    trained = [suggest(search, "a"), suggest(search, "b")]
    assert [job.number for job in trained] == [0, 3]
    assert suggest(search, "c") == test
    assert [job.number for job in kept_back] == [1, 2, 4, 5]
    assert ended_states(study) == dict.fromkeys((1, 2, 4, 5), "pruned")
    excess = {"parameters": 0.5} if sampler == "tpe" else {}
    assert [t.constraints for t in study.get_trials()[1:3]] == [excess, excess]
    search.on_trial_complete("a", result(EPOCHS, 0.5) | {"metrics": [("student/parameters", 80.0)]})
    search.settle()
    assert ended_states(study)[0] == "complete"


def test_a_trial_is_kept_back_once_though_the_storages_answer_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, lost = journalled(tmp_path / "s", constraints={"parameters": 100}), list[int]()

    def once_without_an_answer(study: optuna.Study, job: Job) -> None:
        prune(study, job)
        if not lost:
            lost.append(job.number)
            raise AwayError("the connection is gone")

    monkeypatch.setattr(trials, "prune", once_without_an_answer)
    study, test = open_study(here), Job("trial", 1, split="test")
    search = StudySearch(
        here,
        study,
        iter(["trial", "trial", test]),
        known_before=lambda job: {} if job.number else {"parameters": 150.0},
    )
    assert search.suggest("a") is None
    assert lost == [0]
    assert suggest(search, "a").number == 1
    assert suggest(search, "b") == test
    assert [trial.state for trial in study.get_trials()] == [TrialState.PRUNED, TrialState.RUNNING]


@pytest.mark.slow
def test_tpe_learns_what_breaks_a_constraint(tmp_path: Path) -> None:
    """The accuracy is best where the latency is too high."""
    shares: list[float] = []
    for name, bounds in (("free", {}), ("bound", {"latency": 2.0})):
        here = journalled(tmp_path / name, seed=1, constraints=bounds)
        search = StudySearch(here, open_study(here), repeat("trial"))
        kept: list[bool] = []
        for number in range(40):
            job = suggest(search, str(number))
            momentum = float(job.sample["optim.momentum"])
            kept.append(1 + 2 * momentum <= 2.0)
            search.on_trial_complete(str(number), told(EPOCHS, momentum, 1 + 2 * momentum))
        shares.append(sum(kept[20:]) / 20)
    assert shares[1] > shares[0] + 0.3


TREE: dict[str, Any] = {
    "study": {"name": "s"},
    "data": {"source": "digits"},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "none"},
    "search": {"optim.lr": {"loguniform": [1e-4, 1.0]}},
}


def refused(search: dict[str, Any] | None = None, **study: Any) -> str:
    tree = TREE | {"study": {"name": "s", **study}}
    with pytest.raises(ConfigError) as caught:
        parse_config(tree | ({} if search is None else {"search": search}))
    return str(caught.value)


def test_what_cannot_be_sought_is_refused() -> None:
    assert refused(objectives=["accuracy", "latncy"]).startswith(
        "study.objectives.1: must be 'accuracy', 'latency', 'parameters' or 'training_seconds', "
        "got 'latncy'; did you mean latency?"
    )
    twice = refused(objectives=["accuracy", "latency", "latency"])
    assert twice.startswith("study.objectives: must not name an objective twice, got [accuracy,")
    without = refused(objectives=["latency"])
    assert without == (
        "study.objectives: must have accuracy, by which the winner is chosen, got [latency]; add it"
    )
    unknown = refused(constraints={"flops": 1e9})
    assert unknown.startswith("study.constraints.flops: is not a known key; choose from study.con")
    assert "must be > 0, got 0" in refused(constraints={"latency": 0})
    assert "study.constraints.accuracy: must be <= 1, got 80" in refused(
        constraints={"accuracy": 80}
    )
    assert "must be a number" in refused(constraints={"parameters": "5M"})


def test_a_warm_start_that_cannot_be_of_use_is_refused() -> None:
    assert refused(sampler="nsga2", warm_start=["other"]) == (
        "study.warm_start: must be of use to the sampler, and nsga2 draws by no other study's "
        "trials; use tpe or gp, or remove it"
    )
    alone = "must be without several objectives and constraints"
    assert alone in refused(objectives=["accuracy", "latency"], warm_start=["other"])
    assert alone in refused(constraints={"latency": 2}, warm_start=["other"])


def test_what_cmaes_cannot_do_is_refused() -> None:
    assert refused(sampler="cmaes", objectives=["accuracy", "latency"]) == (
        "study.sampler: must have several objectives, of which there are 2, and CMA-ES has one, "
        "got cmaes; use tpe, gp or nsga2"
    )
    choices = {"data.batch_size": {"choice": [32, 64]}}
    assert refused(choices, sampler="cmaes") == (
        "study.sampler: must draw choices, since search has no number, and CMA-ES draws numbers "
        "alone, got cmaes; use tpe, gp or nsga2"
    )
    both = choices | TREE["search"]
    parse_config(TREE | {"study": {"name": "s", "sampler": "cmaes"}, "search": both})
    assert refused(
        {
            "student.head.name": {"choice": ["linear", "am_softmax"]},
            "student.head.margin": {"uniform": [0.1, 0.5]},
            "optim.lr": {"uniform": [0.1, 0.1]},
        },
        sampler="cmaes",
    ) == (
        "study.sampler: must have a range of numbers, low < high, that every trial reads, as CMA-ES "
        "draws nothing else, and search has none, got cmaes; use tpe, gp or nsga2"
    )
