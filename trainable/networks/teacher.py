"""The frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from trainable.branches import Wait, branch
from trainable.networks.blocks import BlockNetwork
from trainable.networks.fused import fused, kind_of
from trainable.networks.record import Forward
from trainable.networks.slope import Slope, random_directions, slope

Handed = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Features and logits, the logits last, as the teacher gave them → as they are handed to the student."""


def as_given(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """To a student that runs in the teacher's precision."""
    return outputs


class TeacherOutputs:
    """What the teacher says of a micro-batch, without gradient.

    It may be computed beside the student: what reads it is computed after it, so a method reads it late.
    """

    def __init__(
        self,
        features: tuple[Tensor, ...],
        logits: Tensor,
        slope: Slope | None = None,
        wait: Wait | None = None,
    ) -> None:
        self._features, self._logits, self._wait = features, logits, wait
        self.slope = slope
        """Where it was asked for."""

    @property
    def features(self) -> tuple[Tensor, ...]:
        """Output at each cut, in order."""
        self._be_ready()
        return self._features

    @property
    def logits(self) -> Tensor:
        """(batch, classes)."""
        self._be_ready()
        return self._logits

    def _be_ready(self) -> None:
        if self._wait is not None:
            self._wait()


class FrozenTeacher(nn.Module):
    """A teacher that never changes: no gradients, and eval mode whatever anyone calls on it.

    Dropout stays off and BatchNorm uses its running statistics even if `train()` was called on the
    teacher, on a module that holds it, or on one of its layers.
    """

    def __init__(self, network: BlockNetwork) -> None:
        super().__init__()
        self.blocks = network
        self._fused: Forward | None = None
        self._like: Hashable = None
        """The kind of micro-batches that were asked for last."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode."""
        del mode
        return super().train(False)  # type: ignore[return-value]

    def fuse(self, images: Tensor) -> None:
        """From now on take fewer kernels for micro-batches like this one, under the autocast of now.

        Where memory is wanting for it, that is raised, and tried again in the next call.
        """
        if self._like != (like := kind_of(images)):
            self.eval()
            self._fused, self._like = fused(self.blocks.features, images), like

    def forward(self, images: Tensor, handed: Handed = as_given) -> TeacherOutputs:
        """Features at the cuts and logits of (batch, channels, height, width) pictures."""
        with branch("teacher") as wait:
            *features, logits = handed(self._answers(images))
        return TeacherOutputs(tuple(features), logits, wait=wait)

    def _answers(self, images: Tensor) -> Sequence[Tensor]:
        if self._fused is not None and self._like == kind_of(images):
            return self._fused(images)
        self.eval()
        with torch.no_grad():
            return self.blocks.features(images)

    def with_slope(self, images: Tensor) -> TeacherOutputs:
        """As calling it, with the slope of its answer along a direction drawn for each sample; in fp32."""
        self.eval()
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.detach().requires_grad_()
            *features, logits = self.blocks.features(images)
            directions = random_directions(logits.detach())
            gradient = slope(images, logits, directions, differentiable=False)
        detached = tuple(feature.detach() for feature in features)
        return TeacherOutputs(detached, logits.detach(), Slope(directions, gradient))
