"""Ranges of the search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from study.config import StudyConfig, load_config, parse_config
from study.jobs import Job
from study.problems import parse, problems_of
from study.results import Value
from study.space import Sample, SearchRange, Space
from tests.study.test_config import QUICKSTART
from trainable import rules
from trainable.errors import ConfigError
from trainable.rules.reading import READINGS, is_read


def range_of(**values: Any) -> SearchRange:
    return parse(SearchRange, values)


RANGES: dict[str, SearchRange] = {
    "optim.lr": range_of(loguniform=[1e-4, 1e-1]),
    "distill.alpha": range_of(uniform=[0, 1]),
    "train.epochs": range_of(int=[3, 9]),
    "data.batch_size": range_of(choice=[32, 64]),
    "optim.nesterov": range_of(choice=[True, False]),
    "distill.decomposition": range_of(choice=["5/3", "3/2"]),
}
TREE: dict[str, Any] = {
    "study": {"name": "s"},
    "data": {"source": "digits"},
    "teacher": {"model": "resnet34", "train": {"epochs": 2}},
    "student": {"model": "resnet18"},
    "distill": {"method": "stablekd", "alpha": 0.5, "decomposition": "5/2"},
}
EVERYTHING: dict[str, dict[str, Any]] = {
    "distill.alpha": {"uniform": [0, 1]},
    "distill.temperature": {"loguniform": [1, 8]},
    "distill.decomposition": {"k": [1, 5], "n": [0, 3]},
    "distill.stage_split": {"loguniform": [0.5, 2]},
    "distill.feature_scale": {"loguniform": [0.1, 10]},
    "distill.target_weight": {"uniform": [0.5, 2]},
    "distill.hard": {"choice": [True, False]},
    "distill.method": {"choice": ["none", "kd", "mse", "kd_mse", "deit", "dkd", "stablekd"]},
    "optim.lr": {"loguniform": [0.01, 1]},
    "optim.weight_decay": {"loguniform": [1e-5, 1e-2]},
    "optim.nesterov": {"choice": [True, False]},
    "optim.momentum": {"uniform": [0, 0.95]},
    "optim.name": {"choice": ["sgd", "adamw"]},
    "optim.peak_decay": {"uniform": [0.2, 1]},
    "optim.schedule": {"choice": ["auto", "cosine", "triangle", "onecycle"]},
    "optim.reset_at_stages": {"choice": [True, False]},
    "data.batch_size": {"choice": [32, 64]},
    "train.clip": {"loguniform": [1, 10]},
    "train.clip_by": {"choice": ["norm", "layer", "value"]},
    "train.loss_scale.initial": {"choice": [1024.0, 65536.0]},
    "train.precision": {"choice": ["fp32", "bf16", "fp16"]},
    "train.batchnorm.recalibrate_at": {"choice": ["epoch", "stage"]},
    "train.batchnorm.recalibrate": {"int": [0, 5]},
    "student.head.margin": {"uniform": [0.1, 0.4]},
    "student.head.name": {"choice": ["linear", "am_softmax"]},
}
"""A search over nearly all that can be searched, in an order that none of it may depend on."""


def config_of(search: dict[str, Any], **distill: Any) -> StudyConfig:
    base = {**TREE, "distill": distill} if distill else TREE
    return parse_config({**base, "search": search})


def drawn(config: StudyConfig, count: int, seed: int = 0) -> Iterator[Sample]:
    """What random trials draw."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    space = config.space
    for _ in range(count):
        trial = study.ask()
        sample = space(trial)
        assert sample == trial.params
        yield sample


def ask(seed: int) -> dict[str, Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    Space(config_of({}), RANGES)(trial)
    return trial.params


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "exactly one of uniform, loguniform, int, choice, and k with n"),
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
        ({"k": [2, 5]}, "must have k and n together"),
        ({"n": [0, 3]}, "must have k and n together"),
        ({"k": [2, 5], "n": [0, 3], "choice": ["5/2"]}, "exactly one of"),
        ({"k": [5, 2], "n": [0, 3]}, "low <= high must hold"),
        ({"k": [2, 5], "n": [3, 0]}, "low <= high must hold"),
        ({"k": [0, 5], "n": [0, 3]}, "must be >= 1"),
        ({"k": [1, 5], "n": [-1, 3]}, "must be >= 0"),
        ({"k": [1, 4], "n": [3, 5]}, "must hold a decomposition k/n, of which n <= ⌈log₂ k⌉"),
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
    assert list(drawn) == list(RANGES)  # in their order: each trial reads all of them
    assert 1e-4 <= drawn["optim.lr"] <= 1e-1
    assert 0 <= drawn["distill.alpha"] <= 1
    assert drawn["train.epochs"] in range(3, 10)
    assert type(drawn["train.epochs"]) is int
    assert drawn["data.batch_size"] in (32, 64)
    assert drawn["optim.nesterov"] in (True, False)
    assert drawn["distill.decomposition"] in ("5/3", "3/2")


def test_loguniform_is_even_in_the_logarithm() -> None:
    found = [ask(seed)["optim.lr"] for seed in range(100)]
    assert 30 < sum(value < 10**-2.5 for value in found) < 70


def test_k_and_n_are_the_choice_of_every_decomposition_between_them() -> None:
    values = range_of(k=[2, 5], n=[0, 3])
    of_5 = ["5/0", "5/1", "5/2", "5/3"]
    choices = ["2/0", "2/1", "3/0", "3/1", "3/2", "4/0", "4/1", "4/2", *of_5]
    assert values.within(epochs=4).candidates == tuple(choices)
    assert values.within(epochs=2).candidates == tuple(c for c in choices if c[2] in "01")
    assert range_of(k=[1, 3], n=[1, 9]).within(9).candidates == ("2/1", "3/1", "3/2")
    assert range_of(k=[5, 5], n=[3, 3]).within(epochs=2).candidates == ("5/3",)  # and is refused
    assert range_of(uniform=[0, 1]).within(epochs=2) == range_of(uniform=[0, 1])


def test_decompositions_fit_in_the_fewest_epochs_of_a_trial() -> None:
    every: dict[str, Any] = {"distill.decomposition": {"k": [2, 5], "n": [0, 3]}}
    for more, fitting in (
        ({}, 12),
        ({"train.epochs": {"int": [2, 40]}}, 8),
        ({"train.epochs": {"choice": [40, 3]}}, 11),
    ):
        config = config_of(every | more)
        assert len(config.ranges["distill.decomposition"].candidates) == fitting
        assert all(
            not rules.problems(config.trial(s), 5) for s in config.space.draws(config.search)
        )


def test_a_decomposition_that_is_drawn_has_its_k_and_n_in_the_log() -> None:
    config = config_of({"distill.decomposition": {"k": [4, 4], "n": [2, 2]}})
    (sample,) = drawn(config, 1)
    assert Job("trial", 0, sample).shown_params() == {
        "distill.decomposition": "4/2",
        "distill.k": 4,
        "distill.n": 2,
    }


@pytest.mark.parametrize("path", ["optim.lr", "distill.alpha", "train.epochs"])
def test_k_and_n_are_a_range_of_decompositions_alone(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of({path: {"k": [2, 5], "n": [0, 3]}})
    (problem,) = caught.value.problems
    assert problem.path == f"search.{path}"
    assert problem.rule == "k and n are a range of distill.decomposition alone"


def test_what_decides_is_drawn_before_what_depends_on_it_and_all_else_in_its_order() -> None:
    for sample in drawn(config_of(EVERYTHING, alpha=0.5), 50):
        places = {path: place for place, path in enumerate(sample)}
        for path in sample:
            reading = READINGS.get(path)
            for decider in () if reading is None else reading.decided_by:
                assert places.get(decider, -1) < places[path]
    plain = {path: EVERYTHING[path] for path in ("optim.lr", "data.batch_size", "train.clip")}
    assert [list(sample) for sample in drawn(config_of(plain), 3)] == [list(plain)] * 3


def test_what_every_trial_reads_is_drawn_in_the_order_of_the_config() -> None:
    """The quickstart's α depends on no decomposition: its clip has the head's gradient in it."""
    config = load_config(QUICKSTART)
    assert config.space.conditions == {}
    assert list(config.space.usual) == list(config.search)


def test_a_path_is_drawn_where_the_trial_reads_it_and_has_its_base_value_elsewhere() -> None:
    search = {
        "distill.alpha": {"uniform": [0.6, 1]},
        "distill.method": {"choice": ["kd", "stablekd"]},
        "distill.decomposition": {"choice": ["5/2", "3/2"]},
    }
    config = config_of(search, method="kd", alpha=0.5)
    seen: set[tuple[str, str | None, bool]] = set()
    for sample in drawn(config, 40):
        distill = config.trial(sample).distill
        seen.add((distill.method, distill.decomposition, "distill.alpha" in sample))
        assert distill.alpha == sample.get("distill.alpha", 0.5)
    assert seen == {
        ("kd", None, True),
        ("stablekd", "5/2", False),
        ("stablekd", "3/2", True),
    }


def test_a_weight_is_left_out_where_the_method_that_is_drawn_must_not_have_it() -> None:
    search = {
        "distill.method": {"choice": ["kd", "at", "none"]},
        "distill.alpha": {"uniform": [0, 1]},
    }
    config = config_of(search, method="kd", alpha=0.5, lam=1.0)
    weights = {
        method: (distill.alpha is None, distill.lam is None)
        for sample in drawn(config, 20)
        for distill in [config.trial(sample).distill]
        for method in [distill.method]
    }
    assert weights == {"kd": (False, True), "at": (True, False), "none": (True, True)}


def test_a_base_value_that_trials_need_and_do_not_draw_is_asked_for_once() -> None:
    search = {
        "distill.lam": {"loguniform": [0.1, 10]},
        "distill.decomposition": {"k": [2, 5], "n": [0, 3]},
    }
    with pytest.raises(ConfigError) as caught:
        config_of(search, method="stablekd")
    (problem,) = caught.value.problems
    assert problem.path == "distill.lam"
    assert "where search gives distill.decomposition: 2/0" in problem.rule
    assert "beside the search" in problem.remedy
    config_of(search, method="stablekd", lam=1.0)


@pytest.mark.parametrize(
    ("path", "values", "words"),
    [
        (
            "distill.alpha",
            {"uniform": [0, 1]},
            "distill.method is kd, mse, kd_mse, sobolev, deit or",
        ),
        ("distill.hard", {"choice": [True]}, "only where distill.method is deit"),
        ("optim.milestone_decay", {"choice": [0.1]}, "only where optim.schedule is multistep"),
        ("train.clip_by", {"choice": ["norm"]}, "only where train.clip is set"),
        ("train.loss_scale.floor", {"choice": [1.0]}, "only where train.precision is fp16"),
    ],
)
def test_a_path_that_no_trial_reads_is_refused(
    path: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of({path: values})
    (problem,) = caught.value.problems
    assert problem.path == f"search.{path}"
    assert problem.rule.startswith("is read by no trial of this search, only where ")
    assert words in problem.rule


def test_values_that_no_trial_draws_together_are_not_held_against_the_search() -> None:
    """λ and k/n of stablekd, α of kd: all of them at once would be wrong in every trial."""
    search = {
        "distill.method": {"choice": ["sobolev", "at", "nst", "reviewkd"]},
        "distill.alpha": {"uniform": [0, 1]},
        "distill.lam": {"loguniform": [0.1, 10]},
    }
    config = config_of(search, method="kd")
    methods = {s["distill.method"]: sorted(s) for s in config.space.draws(search)}
    assert methods["sobolev"] == ["distill.alpha", "distill.lam", "distill.method"]
    assert methods["at"] == ["distill.lam", "distill.method"]


def test_two_weights_of_stablekd_are_refused_where_both_would_be_drawn() -> None:
    search = {
        "distill.method": {"choice": ["at", "stablekd"]},
        "distill.alpha": {"uniform": [0, 1]},
        "distill.lam": {"loguniform": [0.1, 10]},
    }
    with pytest.raises(ConfigError, match="got both"):
        config_of(search, method="at", decomposition="5/3")


def test_every_draw_of_a_wide_search_is_a_valid_trial() -> None:
    assert_valid(200)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_draws_of_a_wide_search_are_valid_trials() -> None:
    assert_valid(10_000)


def assert_valid(count: int) -> None:
    config = config_of(EVERYTHING, alpha=0.5)
    methods: dict[Value, set[str]] = {}
    for sample in drawn(config, count):
        trial = config.trial(sample)
        assert rules.problems(trial, 5) == [], sample
        assert all(is_read(trial, path) for path in sample), sample
        assert not any(is_read(trial, path) for path in EVERYTHING.keys() - sample.keys()), sample
        methods.setdefault(sample["distill.method"], set()).update(sample)
    assert methods.keys() == {*EVERYTHING["distill.method"]["choice"]}
    assert set().union(*methods.values()) == EVERYTHING.keys()


@pytest.mark.parametrize("path", [path for path in EVERYTHING if path != "distill.method"])
def test_each_path_can_be_searched_alone_with_the_method(path: str) -> None:
    """α, λ, T, k/n, the learning rate, the batch size, weight decay, stages, features, clip, precision, …"""
    method = EVERYTHING["distill.method"]
    decided = READINGS[path].decided_by if path in READINGS else ()
    search = {key: EVERYTHING[key] for key in (*decided, path) if key in EVERYTHING}
    config = config_of({**search, "distill.method": method}, alpha=0.5, decomposition="5/3")
    samples = list(drawn(config, 60))
    assert any(path in sample for sample in samples)
    for sample in samples:
        assert rules.problems(config.trial(sample), 5) == []


def test_a_choice_is_equal_to_a_number_of_another_kind_but_not_to_a_flag() -> None:
    numbers, flags = range_of(choice=[1, 2.5]), range_of(choice=[True, False])
    assert numbers.holds(1.0)
    assert type(numbers.own(1.0)) is int
    assert not numbers.holds(True)
    assert not flags.holds(1)
    assert flags.own(True) is True
