"""What must hold between the keys of `study.pruner`, and how long trials are."""

from __future__ import annotations

from collections.abc import Collection

from study.budget import longest
from study.problems import touches
from study.schema import PrunerConfig, StudyConfig
from trainable.errors import Problem

_PATH = "study.pruner"


def pruner_problems(config: StudyConfig, unknown: Collection[str]) -> list[Problem]:
    """Keys that the pruner does not read, and a first rung that no trial comes to; none without a search.

    A key that has its default may have been written by a study that keeps all of its config.
    """
    pruner = config.study.pruner
    if not config.search or touches(unknown, (f"{_PATH}.name",)):
        return []
    if pruner.name != "asha":
        rule = f"is read by the pruner asha alone, and {_PATH}.name is {pruner.name}"
        own = pruner.model_dump(exclude_defaults=True, exclude={"name"})
        return [
            Problem(f"{_PATH}.{key}", rule, "remove it, or use asha", str(value))
            for key, value in own.items()
        ]
    return _grace_problems(config, pruner, unknown)


def _grace_problems(
    config: StudyConfig, pruner: PrunerConfig, unknown: Collection[str]
) -> list[Problem]:
    path, most = f"{_PATH}.grace_epochs", longest(config)
    if pruner.grace_epochs <= most or touches(unknown, (path, "train.epochs")):
        return []
    rule = f"must be <= {most}, the epochs of a trial, or no trial is ever stopped"
    return [Problem(path, rule, "lower it, or use the pruner none", str(pruner.grace_epochs))]
