"""Ranges of the search."""

from __future__ import annotations

import pickle
from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from study.problems import parse, problems_of
from study.space import SearchRange, Space


def range_of(**values: Any) -> SearchRange:
    return parse(SearchRange, values)


RANGES: dict[str, SearchRange] = {
    "optim.lr": range_of(loguniform=[1e-4, 1e-1]),
    "distill.alpha": range_of(uniform=[0, 1]),
    "train.epochs": range_of(int=[3, 9]),
    "data.batch_size": range_of(choice=[32, 64]),
    "optim.nesterov": range_of(choice=[True, False]),
    "distill.decomposition": range_of(choice=["5/2", "3/1"]),
}


def ask(seed: int) -> dict[str, Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    Space(RANGES)(trial)
    return trial.params


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "exactly one of uniform, loguniform, int and choice"),
        ({"uniform": [0, 1], "int": [0, 1]}, "exactly one of"),
        ({"uniform": [1, 0]}, "low <= high must hold"),
        ({"loguniform": [0, 1]}, "loguniform needs low > 0"),
        ({"loguniform": [-1, 1]}, "loguniform needs low > 0"),
        ({"uniform": [float("nan"), 1]}, "both ends must be finite"),
        ({"uniform": [0, float("inf")]}, "both ends must be finite"),
        ({"choice": []}, "choice must have at least one value"),
        ({"choice": [1, 2, 1]}, "choice must not have a value twice"),
        ({"choice": [None, 1]}, "must be a number, text, true or false"),
        ({"choice": [[1, 2]]}, "must be a number, text, true or false"),
        ({"choice": 3}, "must be a list"),
        ({"uniform": [1]}, "must have two numbers"),
        ({"uniform": [1, 2, 3]}, "must have at most 2"),
        ({"uniform": ["1", 2]}, "must be a number"),
        ({"uniform": [True, 2]}, "must be a number"),
        ({"int": [1.5, 2]}, "must be a whole number"),
        ({"loguniforn": [1, 2]}, "did you mean loguniform?"),
    ],
)
def test_a_range_that_is_none_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(SearchRange, values)
    (problem,) = problems_of(caught.value, SearchRange)
    assert words in str(problem)
    assert problem.remedy


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (range_of(uniform=[0, 1]), (0.0, 1.0)),
        (range_of(loguniform=[1e-4, 1e-1]), (1e-4, 1e-1)),
        (range_of(int=[0, 3]), (0, 3)),
        (range_of(uniform=[0, 0]), (0.0, 0.0)),
        (range_of(choice=["5/2", "3/1", "1/0"]), ("5/2", "3/1", "1/0")),
        (range_of(choice=[False]), (False,)),
    ],
)
def test_candidates_are_the_ends_or_all_choices(values: SearchRange, expected: tuple[Any]) -> None:
    assert values.candidates == expected


@pytest.mark.parametrize("seed", range(5))
def test_optuna_is_asked_for_values_in_range_and_of_the_type(seed: int) -> None:
    drawn = ask(seed)
    assert list(drawn) == list(RANGES)
    assert 1e-4 <= drawn["optim.lr"] <= 1e-1
    assert 0 <= drawn["distill.alpha"] <= 1
    assert drawn["train.epochs"] in range(3, 10)
    assert type(drawn["train.epochs"]) is int
    assert drawn["data.batch_size"] in (32, 64)
    assert drawn["optim.nesterov"] in (True, False)
    assert drawn["distill.decomposition"] in ("5/2", "3/1")


def test_loguniform_is_even_in_the_logarithm() -> None:
    drawn = [ask(seed)["optim.lr"] for seed in range(100)]
    assert 30 < sum(value < 10**-2.5 for value in drawn) < 70


def test_a_space_survives_pickling() -> None:
    copied = pickle.loads(pickle.dumps(Space(RANGES)))
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    copied(trial)
    assert trial.params == ask(0)
