"""When a trained teacher serves again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainable import tasks
from trainable.config import TrialConfig

MakeConfig = Callable[..., TrialConfig]


def key(config: TrialConfig) -> str:
    return tasks.teacher_key(config, tasks.inspect_data(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"checkpoint": {"every": 5, "keep": 3}}},
        {"train": {"max_skipped": 3, "observe_every": 2, "launcher": "inline"}},
        {"train": {"batchnorm": {"batch_stats_accuracy": False}}},
        {"data": {"decode_workers": 0}},
        {"resources": {"cpus_per_worker": 2}},
    ],
)
def test_what_leaves_the_weights_as_they_are_needs_no_new_teacher(
    changes: dict[str, dict[str, Any]], make_config: MakeConfig
) -> None:
    assert key(make_config(**changes)) == key(make_config())


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"epochs": 3}},
        {"train": {"seed": 1}},
        {"train": {"precision": "bf16"}},
        {"train": {"batchnorm": {"sync": True}}},
        {"optim": {"lr": 0.2}},
        {"student": {"head": {"name": "am_softmax"}}},
        {"data": {"batch_size": 32}},
        {"data": {"augment": {"crop": 1}}},
        {"data": {"drop_last": True}},
        {"data": {"val_fraction": 0.5}},
        {"data": {"subset": 0.5}},
        {"data": {"augment": {"mixup": 0.2}}},
        {"data": {"unseen_classes": ["8", "9"]}},
    ],
)
def test_what_changes_the_weights_does(
    changes: dict[str, dict[str, Any]], make_config: MakeConfig
) -> None:
    assert key(make_config(**changes)) != key(make_config())
