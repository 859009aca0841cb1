"""The sections of a trial's config."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from trainable.config import Config, TrialConfig
from trainable.errors import CheckpointError, ConfigError, DataError, InputError, Problem

MINIMAL = {"data": {"source": "digits"}, "student": {"model": "resnet18"}}


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from sections(part)


def test_data_and_student_are_all_that_a_trial_must_name() -> None:
    config = TrialConfig.model_validate(MINIMAL)
    assert config.teacher is None
    assert config.train.seed == 0


@pytest.mark.parametrize("section", sorted(set(sections(TrialConfig)), key=lambda c: c.__name__))
def test_every_section_is_frozen_closed_and_documented(section: type[BaseModel]) -> None:
    assert issubclass(section, Config)
    assert section.model_config.get("frozen")
    assert section.model_config.get("extra") == "forbid"
    assert section.__doc__


def test_a_config_cannot_be_changed() -> None:
    config = TrialConfig.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 3


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.seed", 2**63),
        ("train.loss_scale.initial", 1e39),
        ("train.loss_scale.floor", 0),
        ("train.max_skipped", 0),
        ("train.clip_by", "row"),
        ("train.gradient_noise", -1e-9),
        ("train.batchnorm.momentum", 0),
        ("train.batchnorm.group_norm", 0),
        ("train.checkpoint.keep", 0),
        ("student.head.name", "arcface"),
        ("student.head.margin", -0.1),
        ("optim.lr", 0),
        ("optim.lr", float("nan")),
        ("optim.lr", float("inf")),
        ("optim.momentum", 1.0),
        ("optim.weight_decay", -1e-9),
        ("optim.warmup_fraction", 1),
        ("optim.warmup_fraction", -0.1),
        ("optim.peak_decay", 0),
        ("optim.milestones", [1, 0]),
        ("optim.milestone_decay", 1),
        ("distill.stage_epochs", [1, 0]),
        ("train.batchnorm.recalibrate_at", "end"),
        ("distill.alpha", 1.01),
        ("distill.alpha", float("nan")),
        ("distill.temperature", 0),
        ("distill.decomposition", "5-2"),
        ("data.val_fraction", 1),
        ("data.val_fraction", float("nan")),
        ("data.batch_size", 0),
        ("data.channels", 2),
        ("data.std", [1, 0, 1]),
        ("train.epochs", 0),
        ("train.clip", 0),
        ("train.workers", 0),
        ("resources.gpus_per_worker", -1),
        ("resources.cpus_per_worker", 0),
    ],
)
def test_values_out_of_bounds_are_refused(path: str, value: Any) -> None:
    *sections, key = path.split(".")
    tree: dict[str, Any] = {name: dict(values) for name, values in MINIMAL.items()}
    place = tree
    for section in sections:
        place = place.setdefault(section, {})
    place[key] = value
    with pytest.raises(ValidationError) as caught:
        TrialConfig.model_validate(tree)
    (error,) = caught.value.errors()
    assert error["loc"][: len(sections) + 1] == (*sections, key)


def test_equal_configs_are_equal_and_survive_json() -> None:
    config = TrialConfig.model_validate(MINIMAL)
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config


def test_a_problem_reads_as_path_rule_value_and_remedy() -> None:
    problem = Problem("optim.lr", "must be > 0", "give a positive number", "-0.1")
    assert str(problem) == "optim.lr: must be > 0, got -0.1; give a positive number"
    assert str(Problem("a", "is required", "add it")) == "a: is required; add it"


@pytest.mark.parametrize("kind", [InputError, ConfigError, DataError, CheckpointError])
def test_input_errors_show_all_problems_and_survive_pickling(kind: type[InputError]) -> None:
    error = kind([Problem("a", "is required", "add it"), Problem("b", "is wrong", "mend it")])
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == "a: is required; add it\nb: is wrong; mend it"
    assert type(copied) is kind
    assert copied.problems == error.problems
    assert isinstance(copied, ValueError)
