"""CE + λ·Σ of an error between maps at the cuts: what `at` and `nst` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.added import AddedTerm
from trainable.distill.maps import FeatureShapes, map_pairs
from trainable.distill.terms import Terms
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs


class ComparedMaps(ABC):
    """L = CE + λ·Σ_l error(student_l, teacher_l) over the cuts l, from one forward."""

    def __init__(self, config: DistillConfig, shapes: FeatureShapes | None) -> None:
        map_pairs(config.method, shapes, equal_sizes=True)
        self._added = AddedTerm(config)

    @abstractmethod
    def error(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(batch, channels, height, width) each, of equal heights and widths → a sum over samples, ()."""

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        *features, logits = student.features(images)
        pairs = zip(features, teacher.features, strict=True)
        return self._added(student, logits, labels, [self.error(*pair) for pair in pairs])
