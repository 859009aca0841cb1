"""The frozen teacher."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainable.networks.blocks import BlockNetwork


class TeacherOutputs(NamedTuple):
    """What the teacher says of a micro-batch, without gradient."""

    features: tuple[Tensor, ...]
    """Output at each cut, in order."""
    logits: Tensor
    """(batch, classes)."""


class FrozenTeacher(nn.Module):
    """A teacher that never changes: no gradients, and eval mode whatever anyone calls on it.

    Dropout stays off and BatchNorm uses its running statistics even if `train()` was called on the
    teacher, on a module that holds it, or on one of its layers.
    """

    def __init__(self, network: BlockNetwork) -> None:
        super().__init__()
        self.blocks = network
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode."""
        del mode
        return super().train(False)  # type: ignore[return-value]

    def forward(self, images: Tensor) -> TeacherOutputs:
        """Features at the cuts and logits of (batch, channels, height, width) pictures."""
        self.eval()
        with torch.no_grad():
            *features, logits = self.blocks.features(images)
        return TeacherOutputs(tuple(features), logits)
