"""`kd_mse`: KD with feature alignment at the cuts, end to end (StableKD, table 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.kd import LogitLoss
from trainable.distill.terms import FEATURE, LOSS, Terms, feature_error
from trainable.errors import ConfigError, input_error
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs


class KDWithFeatures:
    """L = (1 − α)·CE + α·T²·KL + Σ_l w_l·MSE(student_l, teacher_l) over the cuts l, from one forward."""

    def __init__(self, config: DistillConfig, cuts: tuple[str, ...]) -> None:
        self._logit_loss = LogitLoss(config)
        weights = config.feature_weights or dict.fromkeys(cuts, 1.0)
        unknown = [cut for cut in weights if cut not in cuts]
        if unknown:
            raise input_error(
                ConfigError,
                "distill.feature_weights",
                "must name cuts",
                f"choose from {', '.join(cuts)}",
                ", ".join(unknown),
            )
        self._weights = tuple(weights.get(cut, 0.0) for cut in cuts)

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        *features, logits = student.features(images)
        terms = self._logit_loss(logits, labels, teacher.logits)
        errors = [
            weight * feature_error(mine, theirs)
            for weight, mine, theirs in zip(self._weights, features, teacher.features, strict=True)
            if weight
        ]
        feature = torch.stack(errors).sum() if errors else torch.zeros_like(terms[LOSS])
        return {**terms, LOSS: terms[LOSS] + feature, FEATURE: feature}
