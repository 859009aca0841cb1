"""What is wrong with a config, in words for a person."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.config import StudyConfig, parse_config
from study.problems import all_paths, near_key, shown
from study.tree import put
from trainable.errors import ConfigError

BASE: dict[str, Any] = {
    "study": {"name": "s"},
    "data": {"source": "digits"},
    "student": {"model": "resnet18"},
    "teacher": {"model": "resnet34", "train": {"epochs": 2}},
    "distill": {"method": "kd", "alpha": 0.5},
}


def message_at(path: str, value: Any) -> str:
    """The only line that a config with this value gives."""
    tree: dict[str, Any] = {
        key: {**section, **({"train": {"epochs": 2}} if key == "teacher" else {})}
        for key, section in BASE.items()
    }
    put(tree, path.split("."), value)
    with pytest.raises(ConfigError) as caught:
        parse_config(tree)
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.lr", -0.1, "optim.lr: must be > 0, got -0.1; give a larger number"),
        ("optim.lr", "fast", "optim.lr: must be a number, got 'fast'; write it like 0.1 or 5e-4"),
        ("optim.lr", "0.1", "optim.lr: must be a number, got '0.1'; "),
        ("optim.lr", True, "optim.lr: must be a number, got true; "),
        ("optim.lr", None, "optim.lr: must be a number, got nothing; "),
        ("optim.lr", [1e-4], "optim.lr: must be a number, got [0.0001]; "),
        ("optim.lr", {"x": 1}, "optim.lr: must be a number, got {x: 1}; "),
        ("optim.lr", float("inf"), "optim.lr: must be finite, got inf; "),
        ("optim.lr", float("nan"), "optim.lr: must be a number, got nan; give one"),
        ("optim.momentum", 1, "optim.momentum: must be < 1, got 1; give a smaller number"),
        ("distill.alpha", 2, "distill.alpha: must be <= 1, got 2; give a smaller number"),
        ("data.val_fraction", -1, "data.val_fraction: must be >= 0, got -1; give a larger number"),
        ("train.epochs", 2.5, "train.epochs: must be a whole number, got 2.5; "),
        ("train.epochs", 1e3, "train.epochs: must be a whole number, got 1000.0; write 1000"),
        ("optim.nesterov", "yes", "optim.nesterov: must be true or false, got 'yes'; "),
        ("optim.nesterov", 1, "optim.nesterov: must be true or false, got 1; "),
        ("student.model", 18, "student.model: must be text, got 18; "),
        ("student.cuts", "layer1", "student.cuts: must be a list, got 'layer1'; write it like"),
        ("student.cuts", [1], "student.cuts.0: must be text, got 1; "),
        ("data.std", [1, 0, 1], "data.std.1: must be > 0, got 0; "),
        ("data.source", "parqet", "got 'parqet'; did you mean parquet?"),
        ("data.source", "zip", "data.source: must be 'digits', "),
        ("data.channels", 2, "data.channels: must be 1 or 3, got 2; choose one of these"),
        ("distill.decomposition", 5, "distill.decomposition: must be written k/n, got 5; "),
        ("distill.decomposition", "5-2", "must be written k/n, got '5-2'; write e.g. 5/2"),
        ("study.name", "a/b", "study.name: must be letters, digits, "),
        ("study.name", "a" * 101, "study.name: must have at most 100"),
        ("optim", 3, "optim: must be a section with keys of its own, got 3; write its keys"),
        ("optim", None, "optim: must be a section with keys of its own, got nothing; give it"),
        ("search", [], "search: must be a section with keys of its own, got []; "),
        ("search", {"optim.lr": 5}, "search.optim.lr: must be a range of values, got 5; write"),
        ("study.baseline", 3, "study.baseline: must be a section with keys of its own, got 3"),
        ("study.baseline", {"optim": {"lr": 1}}, "study.baseline.optim: must be a number, text"),
        ("optim.lr", "x" * 500, "xxx…; write"),
    ],
)
def test_a_wrong_value_is_named_with_rule_value_and_remedy(
    path: str, value: Any, message: str
) -> None:
    assert message in message_at(path, value)


def test_gpus_are_a_number_or_a_word() -> None:
    path = "resources.gpus_per_worker"
    rule = f"{path}: must be a number or auto, got 'atuo'; write e.g. 1, 0.25 or auto"
    assert message_at(path, "atuo") == rule
    assert message_at(path, True).startswith(f"{path}: must be a number or auto, got true")
    assert message_at(path, -1) == f"{path}: must be >= 0, got -1; give a larger number"


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("optim.lrr", "did you mean optim.lr?"),
        ("optim.wieght_decay", "did you mean optim.weight_decay?"),
        ("train.batchnorm.synk", "did you mean train.batchnorm.sync?"),
        ("teacher.train.optim.lrr", "did you mean teacher.train.optim.lr?"),
        ("optimm", "did you mean optim?"),
        ("lr", "did you mean optim.lr?"),
        ("train.lr", "did you mean optim.lr?"),
        ("batch_size", "did you mean data.batch_size?"),
        ("student.checkpoint", "did you mean teacher.checkpoint or train.checkpoint?"),
        ("study.epochs", "did you mean study.screening.epochs or train.epochs?"),
        ("distill.epochs", "did you mean distill.stage_epochs or train.epochs?"),
        ("optim.batch_size", "did you mean optim.lr_batch_size or data.batch_size?"),
        ("teacher.epochs", "did you mean teacher.train.epochs or train.epochs?"),
        ("teacher.lr", "did you mean teacher.train.optim.lr or optim.lr?"),
        ("train.momentum", "did you mean train.batchnorm.momentum or optim.momentum?"),
        ("train.seeds", "did you mean train.seed or study.replicates.seeds?"),
        ("seed", "did you mean train.seed or study.seed?"),
        ("model", "did you mean teacher.model or student.model?"),
        ("train.batch_sizes", "did you mean data.batch_size?"),
        ("data.augment.cropp", "did you mean data.augment.crop?"),
        (
            "study.pruner.grace",
            "choose from study.pruner.grace_epochs, study.pruner.name, study.pruner",
        ),
        ("optim.learning_rate", "choose from optim.lr, optim.lr_batch_size, "),
        ("zzz", "choose from data, distill, optim, "),
        ("resources.zzz", "choose from resources.cpus_per_worker, resources.gpus_per_worker"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(path: str, remedy: str) -> None:
    message = message_at(path, 1)
    assert message.startswith(f"{path}: is not a known key; ")
    assert remedy in message


def test_a_dotted_key_in_the_wrong_place_is_told_how_to_be_written() -> None:
    with pytest.raises(ConfigError, match=r"write its sections as nested keys, optim: \{lr: …\}"):
        parse_config({**BASE, "optim.lr": 1})
    with pytest.raises(ConfigError, match=r"write the searched path as one key, optim.lr: \{…\}"):
        parse_config({**BASE, "search": {"optim": {"lr": {"uniform": [0.1, 1]}}}})
    with pytest.raises(ConfigError, match=r"search.optim.lr.unifrom: .* search.optim.lr.uniform\?"):
        parse_config({**BASE, "search": {"optim.lr": {"unifrom": [0.1, 1]}}})


def test_required_keys_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"study": {}, "teacher": {"train": {}}, "distill": {"alpha": 0.5}})
    assert str(caught.value).splitlines() == [
        "data: is required; add it",
        "teacher.model: is required; add it",
        "teacher.train.epochs: is required; add it",
        "student: is required; add it",
        "study.name: is required; add it",
    ]


PATHS = all_paths(StudyConfig)


def test_paths_include_sections_and_their_keys_at_any_depth() -> None:
    assert {"optim", "optim.lr", "train.batchnorm.sync", "teacher.train.optim.lr"} <= set(PATHS)
    assert "search" in PATHS


@settings(max_examples=50)
@given(st.sampled_from(PATHS), st.integers(0, 20), st.sampled_from("qxz"))
def test_one_typing_error_in_a_long_key_leads_back_to_it(path: str, at: int, letter: str) -> None:
    *sections, key = path.split(".")
    if len(key) < 4:
        return
    wrong = key[: at % len(key)] + letter + key[at % len(key) :]
    assert near_key([*sections, wrong], StudyConfig) == path


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_a_value_is_shown_in_one_short_line(value: Any) -> None:
    text = shown(value)
    assert 0 < len(text) <= 80
    assert not re.search(r"[\n\r]", text)


def test_values_that_yaml_does_not_know_are_shown_as_python_has_them() -> None:
    assert shown({"a": object}).startswith("{'a': <class")
