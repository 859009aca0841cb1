"""Small networks, batches and configs for the tests of a trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trainable.config import TrialConfig
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student
from trainable.networks.teacher import FrozenTeacher

PICTURES = Pictures(classes=10, channels=3, image_size=(8, 8))

MakeConfig = Callable[..., TrialConfig]


@pytest.fixture
def make_config() -> MakeConfig:
    """A valid config of a trial on digits; sections are updated by keyword."""

    def make(**sections: dict[str, Any]) -> TrialConfig:
        tree: dict[str, Any] = {
            "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 64},
            "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
            "student": {"model": "mini_resnet_10_4"},
            "distill": {"method": "kd", "alpha": 0.5},
            "train": {"epochs": 2},
            "resources": {"gpus_per_worker": 0},
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return TrialConfig.model_validate(tree)

    return make


@pytest.fixture
def student(make_config: MakeConfig) -> BlockNetwork:
    """A student of five blocks with BatchNorm."""
    torch.manual_seed(0)
    return build_student(make_config(), PICTURES)


@pytest.fixture
def teacher(make_config: MakeConfig) -> FrozenTeacher:
    """A teacher of the same widths and other weights."""
    torch.manual_seed(1)
    return FrozenTeacher(build_student(make_config(), PICTURES))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Sixteen pictures and their labels."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(16, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 10, (16,), generator=generator)
