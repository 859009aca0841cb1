"""A student as its trial has kept it, with what it takes to show it pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainable.config import TrialConfig
from trainable.data.augment import Normalizer
from trainable.data.store import Dataset, open_dataset
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student
from trainable.networks.weights import load_weights


@dataclass(frozen=True)
class Trained:
    """In eval mode, on the CPU and in fp32."""

    student: BlockNetwork
    data: Dataset

    @property
    def pictures(self) -> Pictures:
        """What the network knows of its pictures."""
        data = self.data
        return Pictures(len(data.classes), data.channels, data.image_size)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """uint8 (batch, channels, height, width) → fp32 (batch, classes)."""
        normalize = Normalizer(self.data.mean, self.data.std, torch.device("cpu"))
        return self.student(normalize(images))


def load_trained(config: TrialConfig, weights: Path) -> Trained:
    """The student of a trial's kept weights; InputError if they, or the data, are not what they were."""
    data = open_dataset(config.data)
    # Alone, BatchNorm over all workers is BatchNorm.
    alone = config.model_copy(update={"train": config.train.model_copy(update={"workers": 1})})
    pictures = Pictures(len(data.classes), data.channels, data.image_size)
    student = build_student(alone, pictures, for_inference=True)
    load_weights(student.whole, weights, config_path=str(weights))
    return Trained(student.eval(), data)
