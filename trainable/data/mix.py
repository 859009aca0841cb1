"""Mixup and CutMix of a micro-batch on its device, by torchvision."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from trainable.config import AugmentConfig
from trainable.data.hashing import stream_key
from trainable.data.seeding import drawing_from


class Mixer:
    """Gives every picture of a micro-batch a part of the one before it, and of that one's label.

    x' = λ·x + (1 − λ)·x₋₁ for mixup (Zhang et al. 2018, eq. 1), M⊙x + (1 − M)⊙x₋₁ for CutMix (Yun
    et al. 2019, eq. 1), where a rectangle has M = 0 and λ is the mean of M; the label is
    λ·y + (1 − λ)·y₋₁. One λ ~ Beta(α, α) a micro-batch. Where both are configured, each micro-batch
    gets one of them, either with probability 1/2.

    Every draw is a function of (seed, epoch, the micro-batch's first sample), and nothing waits for
    the device.
    """

    def __init__(self, config: AugmentConfig, classes: int, seed: int) -> None:
        kinds = ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
        self._transforms = [kind(alpha=alpha) for kind, alpha in kinds if alpha is not None]
        self._classes, self._seed = classes, seed

    def __call__(
        self, images: Tensor, labels: Tensor, *, epoch: int, first: int
    ) -> tuple[Tensor, Tensor]:
        """Mixed pictures and the distributions of their classes.

        Args:
            images: Float (B, C, H, W).
            labels: int64 (B,); one that is no class has no part in its distribution.
            epoch: Counted from 1.
            first: Index of the micro-batch's first sample.

        Returns:
            (B, C, H, W) and float32 (B, classes).
        """
        word = stream_key("mix", self._seed, epoch, first)
        transform = self._transforms[word % len(self._transforms)]
        distributions = labels[:, None] == torch.arange(self._classes, device=labels.device)
        with drawing_from(word):
            return transform(images, distributions.float())
