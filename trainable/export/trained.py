"""A student as its trial has kept it, with what it takes to show it pictures."""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainable.config import TrialConfig
from trainable.data.augment import Normalizer
from trainable.data.store import Dataset, facts_of_data, open_dataset
from trainable.errors import InputError, input_error
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student
from trainable.networks.weights import facts_of, load_weights

_ROUNDING = 1e-6
"""Of a mean or deviation of pixels in [0, 1]."""
_SHOWN = 4
"""Classes."""


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
    _check_is_the_data(data, facts_of(weights))
    # Alone, BatchNorm over all workers is BatchNorm.
    alone = config.model_copy(update={"train": config.train.model_copy(update={"workers": 1})})
    pictures = Pictures(len(data.classes), data.channels, data.image_size)
    student = build_student(alone, pictures, for_inference=True)
    load_weights(student.whole, weights, config_path=str(weights))
    return Trained(student.eval(), data)


def _check_is_the_data(data: Dataset, kept: dict[str, str]) -> None:
    """InputError unless the data are what the weights' file says that they were, if it does."""
    if "data" not in kept:
        return
    now, before = (json.loads(facts["data"]) for facts in (facts_of_data(data), kept))
    for name, found in now.items():
        then = before[name]
        if _differ(then, found):
            raise input_error(
                InputError,
                "data",
                f"must be what the student was trained on, with {name} {_shown(then, found)}",
                "bring that data back",
                _shown(found, then),
            )


def _differ(then: Any, now: Any) -> bool:
    """Means and deviations may be rounded otherwise on another machine."""
    if isinstance(then, list) and then and isinstance(then[0], float):
        return len(then) != len(now) or max(map(abs, map(operator.sub, then, now))) > _ROUNDING
    return then != now


def _shown(these: Any, those: Any) -> str:
    """Of many classes the first that differs."""
    if isinstance(these, list) and len(these) > _SHOWN:
        pairs = enumerate(zip_longest(these, those))
        number, (one, _) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
        return f"{len(these)}, number {number} {one}"
    return str(these)
