"""What the searches of baselines search, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from study.baselines import baseline_search
from study.config import StudyConfig, parse_config, without_search
from trainable.errors import ConfigError

EVENLY = {"uniform": [0, 1]}
SEARCH: dict[str, Any] = {
    "distill.decomposition": {"choice": ["1/0", "2/1"]},
    "distill.lam": {"loguniform": [0.1, 10]},
    "optim.lr": {"loguniform": [1e-3, 1]},
    "data.batch_size": {"choice": [32, 64]},
}


def build(**changes: Any) -> StudyConfig:
    study = {"name": "s", "trials": 9, "baselines": {"none": 4, "kd": 6}}
    tree: dict[str, Any] = {
        "study": study | changes.pop("study", {}),
        "data": {"source": "digits"},
        "teacher": {"model": "mini_resnet_18_4", "train": {"epochs": 1}},
        "student": {"model": "mini_resnet_10_4"},
        "distill": {"method": "stablekd", "temperature": 3.0, "decomposition": "2/1", "lam": 1.0},
        "search": SEARCH,
    }
    return parse_config(tree | changes)


def test_none_searches_all_but_what_the_teacher_has_a_part_in() -> None:
    found = baseline_search(build(study={"baseline": {"optim.momentum": 0.5}}), "none")
    assert list(found.search) == ["optim.lr", "data.batch_size"]
    assert (found.study.name, found.study.trials) == ("s/none", 4)
    trial = found.trial({"optim.lr": 0.3, "data.batch_size": 32})
    assert (trial.distill.method, trial.optim.lr, trial.optim.momentum) == ("none", 0.3, 0.5)


@pytest.mark.parametrize("name", ["none", "kd"])
def test_no_study_can_have_the_name_of_anothers_baseline(name: Any) -> None:
    """They may share a storage of Optuna's."""
    taken = baseline_search(build(), name).study.name
    with pytest.raises(ConfigError, match=f"study.name: .*{taken}"):
        build(study={"name": taken})


def test_what_no_trial_of_a_baseline_reads_is_not_searched() -> None:
    """Peaks that fall from stage to stage are StableKD's alone."""
    search = SEARCH | {"optim.peak_decay": {"uniform": [0.2, 0.8]}}
    config = build(search=search)
    assert "optim.peak_decay" in config.search
    for name in ("none", "kd"):
        assert "optim.peak_decay" not in baseline_search(config, name).search


def test_a_path_that_is_searched_has_no_base_value() -> None:
    found = baseline_search(build(study={"baseline": {"optim.lr": 0.5}}), "none")
    assert found.search["optim.lr"] == build().search["optim.lr"]


def test_kd_searches_alpha_by_itself_where_the_study_does_not() -> None:
    found = baseline_search(build(study={"baseline": {"optim.momentum": 0.5}}), "kd")
    assert set(found.search) == {"optim.lr", "data.batch_size", "distill.alpha"}
    assert found.search["distill.alpha"].uniform == (0.0, 1.0)
    distill = found.trial({"distill.alpha": 0.2}).distill
    assert (distill.method, distill.alpha, distill.temperature) == ("kd", 0.2, 3.0)
    assert (distill.lam, distill.decomposition) == (None, None)
    assert found.optim.momentum == 0.9  # study.baseline is of the student without a teacher


def test_kd_has_the_studys_own_ranges_of_alpha_and_temperature() -> None:
    ranges = {"distill.alpha": {"uniform": [0.2, 0.6]}, "distill.temperature": {"choice": [1, 4]}}
    distill = {"method": "kd"}
    found = baseline_search(build(search=ranges, distill=distill, study={"baselines": {}}), "kd")
    assert found.search == build(search=ranges, distill=distill, study={"baselines": {}}).search


def test_a_single_trial_has_nothing_to_be_compared_with() -> None:
    whole = build(study={"epoch_budget": 100, "replicates": {"finalists": 3, "seeds": 2}})
    alone = without_search(whole).study
    assert (alone.trials, alone.replicates, alone.baselines, alone.epoch_budget) == (
        *(1, None, {}, None),
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"study": {"baselines": {"dkd": 3}}},
            "study.baselines.dkd: must be 'none' or 'kd', got 'dkd'",
        ),
        ({"study": {"baselines": {"kd": 0}}}, "study.baselines.kd: must be >= 1, got 0"),
        ({"search": {}}, "study.baselines.none: needs a search of the study"),
        (
            {"search": {"distill.lam": EVENLY}},
            "study.baselines.none: has nothing to search: its trials read none of the searched paths",
        ),
        (
            {
                "search": {key: SEARCH[key] for key in ("distill.lam", "data.batch_size")},
                "study": {"sampler": "cmaes"},
            },
            "study.baselines.none: must search a range of numbers, low < high, that every trial reads, since "
            "study.sampler is cmaes, got data.batch_size; search e.g. optim.lr, use tpe, gp or nsga2, or remove it",
        ),
        (
            {"teacher": None, "distill": {"method": "none"}, "search": {"optim.lr": EVENLY}},
            "study.baselines.kd: needs a teacher",
        ),
        ({"study": {"replicates": {"finalists": 2}}}, "study.replicates.seeds: is required"),
        ({"study": {"replicates": {"seeds": 0}}}, "study.replicates.seeds: must be >= 1, got 0"),
        (
            {"study": {"replicates": {"finalists": 10, "seeds": 1}}},
            "study.replicates.finalists: must be <= 9, the trials of the study, got 10",
        ),
        (
            {"study": {"epoch_budget": 19}},
            "study.epoch_budget: must be >= 20, the epochs of one trial, got 19",
        ),
        (
            {"search": SEARCH | {"train.epochs": {"choice": [20, "many"]}}},
            "search.train.epochs: must be a whole number",
        ),
        (
            {"search": SEARCH | {"train.epochs": {"int": [5, 30]}}, "study": {"epoch_budget": 29}},
            "study.epoch_budget: must be >= 30",
        ),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**changes)
    assert told in str(caught.value)


def test_a_rule_that_a_baseline_breaks_by_itself_says_whose_it_is() -> None:
    with pytest.raises(ConfigError) as caught:
        build(optim={"warmup_fraction": 0})
    told = str(caught.value)
    assert "optim.warmup_fraction: must be > 0 for triangle, which" in told
    for name in ("none", "kd"):
        rule = f"must be > 0 for onecycle, which rises to its peak (for the baseline {name})"
        assert f"optim.warmup_fraction: {rule}" in told


def test_what_is_wrong_with_the_study_is_not_said_again_of_its_baselines() -> None:
    with pytest.raises(ConfigError) as caught:
        build(train={"clip_by": "value"})
    (problem,) = caught.value.problems
    assert problem.path == "train.clip_by"
