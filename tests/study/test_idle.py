"""Keys that are given and that nothing in the study reads: refused, and not ignored in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from study.config import dump_config, load_single, parse_config
from study.yaml import dump_yaml, parse_yaml
from trainable.errors import ConfigError
from trainable.methods import METHODS, MethodName

KD = ("distill.method=kd", "distill.alpha=0.5")
DKD = ("distill.method=dkd",)
SEARCHED = "search.distill.method={choice: [kd, dkd]}"


def tree() -> dict[str, Any]:
    return {
        "study": {"name": "s"},
        "data": {"source": "digits"},
        "student": {"model": "resnet18"},
        "teacher": {"model": "resnet34", "train": {"epochs": 2}},
        "search": {"optim.lr": {"loguniform": [1e-3, 1e-1]}},
    }


def problems(*settings: str) -> list[str]:
    try:
        parse_config(tree(), settings)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def test_a_key_of_another_method_is_refused_with_a_remedy() -> None:
    assert problems(*KD, "distill.decomposition=5/2") == [
        "distill.decomposition: is read by no trial of this study, only where distill.method is "
        "stablekd, got '5/2'; remove it, or change what decides it"
    ]
    assert problems(*DKD, "distill.hard=false") == [
        "distill.hard: is read by no trial of this study, only where distill.method is deit, got "
        "false; remove it (the default is true), or change what decides it"
    ]


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ((*KD, "distill.stage_epochs=[10, 10]"), "distill.stage_epochs"),
        ((*KD, "distill.stage_split=2.0"), "distill.stage_split"),
        ((*KD, "distill.feature_scale=2.0"), "distill.feature_scale"),
        ((*KD, "distill.target_weight=2.0"), "distill.target_weight"),
        ((*KD, "distill.nontarget_weight=2.0"), "distill.nontarget_weight"),
        (("distill.method=at", "distill.lam=1.0", "distill.temperature=4"), "distill.temperature"),
        (
            ("distill.method=mse", "distill.alpha=0.5", "distill.temperature=4"),
            "distill.temperature",
        ),
        (
            ("distill.method=deit", "distill.alpha=0.5", "distill.temperature=4"),
            "distill.temperature",  # of hard labels there is none
        ),
        ((*KD, SEARCHED, "distill.decomposition=5/2"), "distill.decomposition"),
        ((*KD, "search={}", "distill.decomposition=5/2"), "distill.decomposition"),
        ((*KD, "optim.peak_decay=0.7"), "optim.peak_decay"),
        ((*KD, "train.loss_scale.initial=1024"), "train.loss_scale.initial"),
        (
            (*KD, "search={}", "optim.name=adamw", "optim.nesterov=false"),
            "optim.nesterov",
        ),
    ],
)
def test_what_no_trial_has_a_use_for_is_refused(settings: tuple[str, ...], path: str) -> None:
    (line,) = problems(*settings)
    assert line.startswith(f"{path}: is read by no trial of this study, only where ")


def test_a_rule_of_the_key_itself_is_told_alone() -> None:
    (line,) = problems(*KD, "distill.lam=1.0")
    assert line.startswith("distill.lam: belongs to at, sobolev, nst, reviewkd and stablekd")


@pytest.mark.parametrize(
    "settings",
    [
        (*KD, SEARCHED, "distill.nontarget_weight=2.0"),  # by some trials of the search
        (*DKD, "distill.hard=true", "distill.temperature=4"),
        ("distill.method=deit", "distill.alpha=0.5", "distill.hard=false", "distill.temperature=4"),
        # by the student without a teacher alone, which trains at the base values
        (*KD, "search.optim.name={choice: [adamw]}", "optim.nesterov=false"),
        (  # by a baseline's own search alone
            *("distill.method=mse", "distill.alpha=0.5", "distill.temperature=4"),
            "study.baselines={kd: 5}",
        ),
        # alone, the student of any config can be trained
        ("distill.method=none", "distill.decomposition=5/2", "distill.temperature=4"),
        ("distill.method=none", "optim.reset_at_stages=true"),
    ],
)
def test_what_something_in_the_study_reads_may_be_given(settings: tuple[str, ...]) -> None:
    assert problems(*settings) == []


@pytest.mark.parametrize("method", get_args(MethodName))
def test_defaults_may_be_written_out(method: MethodName) -> None:
    """As in the config that a study's folder keeps."""
    weights = METHODS[method].needs or METHODS[method].needs_one[:1]
    given = [f"distill.method={method}", *(f"distill.{weight}=0.5" for weight in weights)]
    given += ["distill.decomposition=5/2"] if method == "stablekd" else []
    config = parse_config(tree(), given)
    written = parse_yaml(dump_config(config), "dump")
    assert "hard" in written["distill"]
    assert parse_config(written) == config


def test_what_is_wrong_elsewhere_is_not_said_of_what_depends_on_it() -> None:
    (line,) = problems("distill.method=kdd", "distill.alpha=0.5", "distill.decomposition=5/2")
    assert line.startswith("distill.method: ")


def test_a_single_training_leaves_out_what_only_others_of_its_study_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(tree()))
    for_baseline = ["distill.method=mse", "distill.alpha=0.5", "distill.temperature=4"]
    single, _ = load_single(path, [*for_baseline, "study.baselines={kd: 5}"])
    assert single.distill.temperature == 1.0
    assert parse_config(parse_yaml(dump_config(single), "dump")) == single
    searched = ["search.distill.method={choice: [kd, stablekd]}", "distill.decomposition=5/2"]
    single, _ = load_single(path, [*KD, *searched])
    assert (single.distill.method, single.distill.decomposition) == ("kd", None)
    with pytest.raises(ConfigError, match="temperature: is read by no trial"):
        load_single(path, for_baseline)
