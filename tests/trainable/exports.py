"""Students to be exported: untrained, with BatchNorm statistics as if they had been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainable.config import TrialConfig
from trainable.data.store import open_dataset
from trainable.networks.build import Pictures, build_student
from trainable.networks.weights import load_weights, save_weights
from trainable.statistics.batchnorm import batchnorm_layers


def trial(model: str, size: int = 8, channels: int = 3, **sections: Any) -> TrialConfig:
    """A trial on digits, resized to `size` pixels."""
    student = {"model": model, **sections.pop("student", {})}
    tree: dict[str, Any] = {
        "data": {"source": "digits", "image_size": size, "channels": channels},
        "student": student,
        "distill": {"method": "none"},
        "resources": {"gpus_per_worker": 0},
    }
    return TrialConfig.model_validate(tree | sections)


def keep(config: TrialConfig, path: Path) -> Path:
    """Weights as the trial would keep them for inference."""
    data, draw = open_dataset(config.data), torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    pictures = Pictures(len(data.classes), data.channels, data.image_size)
    student = build_student(config, pictures, for_inference=True)
    with torch.no_grad():
        for layer in batchnorm_layers(student).values():
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.5, generator=draw)
            layer.running_var.uniform_(0.5, 2, generator=draw)
            if layer.affine:
                layer.weight.uniform_(0.5, 1.5, generator=draw)
                layer.bias.normal_(0, 0.3, generator=draw)
    save_weights(student.whole, path)
    return path


def pictures_of(config: TrialConfig) -> Tensor:
    """Made-up pixels of its pictures' shape."""
    shape = (5, config.data.channels, config.data.image_size or 8, config.data.image_size or 8)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


@torch.no_grad()
def logits_of(config: TrialConfig, weights: Path, images: Tensor) -> Tensor:
    """What the trained student says, by the plain formula of its normalisation."""
    data = open_dataset(config.data)
    pictures = Pictures(len(data.classes), data.channels, data.image_size)
    student = build_student(config, pictures, for_inference=True).eval()
    load_weights(student.whole, weights, config_path="weights")
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return student((images / 255 - mean) / std)
