"""What each sampler draws: the same again after an interruption, and apart from what runs at the same time."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import combinations, pairwise, repeat
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from study import samplers
from study.config import StudyConfig, StudySection
from study.jobs import Job
from study.optuna_study import open_study
from study.samplers import POPULATION, STARTUP, missing_package, sampler_for
from study.search import StudySearch
from tests.study.test_search import EPOCHS, journalled, loss_of, result, suggest

needs_cmaes = pytest.mark.skipif(find_spec("cmaes") is None, reason="needs the extra cmaes")
OF_ONE = ["tpe", "nsga2", "random", "qmc", pytest.param("cmaes", marks=needs_cmaes)]
SLOW_GP = pytest.param("gp", marks=pytest.mark.slow)
OF_SEVERAL = ["tpe", "nsga2", "random", "qmc", SLOW_GP]
UNIT = dict.fromkeys("xy", FloatDistribution(0, 1))
RANGES = {"optim.lr": (1e-4, 1.0, True), "optim.momentum": (0.0, 0.9, False)}


def section(sampler: str, seed: int = 0) -> StudySection:
    return StudySection.model_validate({"name": "s", "sampler": sampler, "seed": seed})


def costed(value: float, job: Job) -> dict[str, Any]:
    """The last epoch's result, with costs that follow from the sample."""
    latency = 1.0 + float(job.sample["optim.momentum"])
    return result(EPOCHS, value) | {"metrics": [("student/latency_ms", latency)]}


def end(search: StudySearch, name: str, job: Job) -> None:
    search.on_trial_result(name, result(1, loss_of(job) / 2))
    search.on_trial_complete(name, costed(loss_of(job), job))


def drawn(settings: StudyConfig, trials: int, *, interrupted: bool) -> list[dict[str, Any]]:
    """The samples of trials one after the other; interrupted, each has two drivers, the first of which dies."""
    samples: list[dict[str, Any]] = []
    search = StudySearch(settings, open_study(settings), repeat("trial"))
    for number in range(trials):
        job = suggest(search, str(number))
        if interrupted:
            search.on_trial_result(str(number), result(1, loss_of(job) / 2))
            search = StudySearch(settings, open_study(settings), repeat("trial"))
            assert suggest(search, str(number)) == job
        end(search, str(number), job)
        samples.append(job.sample)
    return samples


@pytest.mark.parametrize("sampler", [*OF_ONE, SLOW_GP])
def test_an_interrupted_study_draws_what_one_draws_that_is_not(
    tmp_path: Path, sampler: str
) -> None:
    trials = POPULATION + 4  # beyond two generations of CMA-ES, and what is drawn at random
    calm, interrupted = (
        drawn(
            journalled(tmp_path / name, sampler=sampler, seed=3),
            trials,
            interrupted=name == "interrupted",
        )
        for name in ("calm", "interrupted")
    )
    assert calm == interrupted
    assert len({tuple(sample.values()) for sample in calm}) > POPULATION


@pytest.mark.parametrize("sampler", OF_SEVERAL)
def test_so_it_does_with_several_objectives_and_constraints(tmp_path: Path, sampler: str) -> None:
    kind = {"objectives": ["accuracy", "latency"], "constraints": {"latency": 1.5}}
    calm, interrupted = (
        drawn(
            journalled(tmp_path / name, sampler=sampler, seed=3, **kind),
            POPULATION + 2,
            interrupted=name == "interrupted",
        )
        for name in ("calm", "interrupted")
    )
    assert calm == interrupted


@pytest.mark.parametrize("sampler", ["tpe", SLOW_GP])
def test_a_small_study_is_more_than_a_random_search(tmp_path: Path, sampler: str) -> None:
    learning, random = (
        drawn(journalled(tmp_path / name, sampler=name, seed=3), STARTUP + 2, interrupted=False)
        for name in (sampler, "random")
    )
    assert learning[:STARTUP] == random[:STARTUP]
    assert not any(sample in random for sample in learning[STARTUP:])


def test_the_points_of_qmc_are_one_sequence(tmp_path: Path) -> None:
    """Of 16 in a row each sixteenth of each range has one, which a scrambling for each trial would not give."""
    samples = drawn(journalled(tmp_path / "s", sampler="qmc", seed=5), 16, interrupted=True)
    for path, (low, high, logarithmic) in RANGES.items():
        places = [
            math.log(float(sample[path]) / low) / math.log(high / low)
            if logarithmic
            else (float(sample[path]) - low) / (high - low)
            for sample in samples
        ]
        assert sorted(int(16 * place) for place in places) == list(range(16))


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("cmaes", marks=needs_cmaes)])
def test_a_trial_that_is_handed_out_again_is_left_as_it_was_drawn(
    tmp_path: Path, sampler: str
) -> None:
    """Whatever has ended since: the sampler's notes of it belong to what was drawn."""
    settings = journalled(tmp_path / "s", sampler=sampler)
    drawn(settings, 11, interrupted=False)
    search = StudySearch(settings, open_study(settings), repeat("trial"))
    ended, left = suggest(search, "a"), suggest(search, "b")
    before = open_study(settings).get_trials()[left.number]
    assert before.system_attrs
    end(search, "a", ended)
    again = StudySearch(settings, study := open_study(settings), repeat("trial"))
    assert suggest(again, "b") == left
    assert study.get_trials()[left.number] == before


def ask(sampler: str, history: Sequence[TrialState], running: int = 0) -> list[dict[str, Any]]:
    """What is drawn beside each other after trials with these ends; good ones have x and y near 0.3."""
    study = optuna.create_study(direction="maximize")
    for number, state in enumerate([*history, *[TrialState.RUNNING] * running]):
        study.sampler = sampler_for(section(sampler), number, UNIT)
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        if state == TrialState.COMPLETE:
            study.tell(trial, -((x - 0.3) ** 2) - (y - 0.3) ** 2)
        elif state != TrialState.RUNNING:
            study.tell(trial, state=state)
    return [trial.params for trial in study.get_trials()[len(history) :]]


def apart(samples: Sequence[dict[str, Any]]) -> float:
    """Mean distance between two of them."""
    return fmean(math.dist(a.values(), b.values()) for a, b in combinations(samples, 2))


DONE = [TrialState.COMPLETE] * 20


def test_tpe_draws_away_from_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with_liar = ask("tpe", DONE, running=8)
    tpe = samplers.TPESampler
    monkeypatch.setattr(samplers, "TPESampler", lambda **how: tpe(**how, constant_liar=False))
    without = ask("tpe", DONE, running=8)
    assert with_liar[0] == without[0]  # nothing ran beside the first
    assert apart(with_liar) > 1.5 * apart(without)
    assert len({tuple(sample.values()) for sample in with_liar}) == 8


def next_beside(sampler: str, state: TrialState) -> dict[str, Any]:
    """What the trial after 20 that ended, and two in this state, is given."""
    (last,) = ask(sampler, [*DONE, state, state], running=1)
    return last


@pytest.mark.slow
def test_gp_too_draws_away_from_what_runs() -> None:
    """By the values that it expects of them; it has no constant liar."""
    beside = ask("gp", DONE, running=3)
    assert next_beside("gp", TrialState.FAIL) != beside[2]
    assert min(math.dist(a.values(), b.values()) for a, b in combinations(beside, 2)) > 0.01


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_what_learns_nothing_draws_the_same_however_many_run(sampler: str) -> None:
    assert ask(sampler, [], running=8) == ask(sampler, [], running=1) + [
        ask(sampler, [TrialState.COMPLETE] * number, running=1)[0] for number in range(1, 8)
    ]


@pytest.mark.parametrize(
    "sampler", ["nsga2", "random", "qmc", pytest.param("cmaes", marks=needs_cmaes)]
)
def test_others_do_not_look_at_what_runs(sampler: str) -> None:
    running = ask(sampler, DONE, running=3)
    assert next_beside(sampler, TrialState.FAIL) == running[2]
    assert all(one != other for one, other in pairwise(running))


@pytest.mark.parametrize("sampler", [*OF_ONE, "gp"])
def test_parameters_that_only_some_trials_have_are_drawn_without_a_word(
    sampler: str, caplog: pytest.LogCaptureFixture
) -> None:
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with caplog.at_level(logging.WARNING):
            study = optuna.create_study(direction="maximize")
            extra: list[float] = []
            space = {**UNIT, "z": FloatDistribution(0, 1)}
            for number in range(16):
                study.sampler = sampler_for(section(sampler), number, space, ["z"])
                trial = study.ask()
                value = trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)
                if number % 3 == 1:
                    extra.append(trial.suggest_float("z", 0, 1))
                study.tell(trial, value)
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Of a package that makes the Gaussian process faster, Optuna says once that it is not there.
    assert [message for message in caplog.messages if "greenlet" not in message] == []
    assert len(set(extra)) == len(extra)


@needs_cmaes
def test_cmaes_draws_choices_at_random_and_numbers_by_what_it_knows(tmp_path: Path) -> None:
    settings = journalled(tmp_path / "s", sampler="cmaes", seed=1)
    samples = drawn(settings, 40, interrupted=False)
    assert {sample["data.batch_size"] for sample in samples[1:]} == {32, 64, 128}
    off = [abs(float(sample["optim.momentum"]) - 0.6) for sample in samples]
    assert fmean(off[30:]) < 0.5 * fmean(off[:10])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "find_spec", lambda name: None)
    assert missing_package(section("tpe")) == []
    (problem,) = missing_package(section("cmaes"))
    assert str(problem) == (
        "study.sampler: needs the package cmaes, which is not installed, got cmaes; install "
        "kd-study[cmaes], or use another sampler"
    )
