"""Autocast of both networks, and the student's loss scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp import GradScaler, autocast

from trainable.config import PrecisionName, TrainConfig, TrialConfig
from trainable.methods import METHODS
from trainable.statistics import foreach

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The type of the student's forward pass, and the loss scale that keeps fp16 gradients from vanishing.

    Without fp16 the scale is 1 and never moves. (TF32 is a setting of the process: `settings`.)
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._device = device
        self._name: PrecisionName = config.precision
        self._floor = config.loss_scale.floor
        first = config.loss_scale.initial if config.precision == "fp16" else math.inf
        self._lowest = torch.full((), first, device=device)
        """The smallest that the scale has been in this process; infinite where there is none."""
        self.scaler = _AgreedGradScaler(
            device.type,
            init_scale=config.loss_scale.initial,
            growth_interval=config.loss_scale.growth_interval,
            enabled=config.precision == "fp16",
        )

    def forward(self) -> autocast:
        """The context of the forward pass."""
        return _autocast(self._name, self._device)

    def scale(self, factor: Tensor) -> Tensor:
        """A factor of the loss, times the scale."""
        return self.scaler.scale(factor)

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide the gradients by the scale, in place."""
        if (scale := self.scaler.on_device()) is not None:
            foreach.divide_(gradients, scale)

    def update(self, skipped: Tensor) -> None:
        """Halve the scale after a skipped update, double it after many good ones; `skipped` is 0 or 1."""
        if (scale := self.scaler.on_device()) is not None:
            self.scaler.update_after(skipped)
            torch.minimum(self._lowest, scale, out=self._lowest)

    @property
    def was_below_floor(self) -> Tensor:
        """Whether the scale ever was below its floor: () on the device."""
        return self._lowest < self._floor


class TeacherPrecision:
    """The type of the teacher's forward pass, and of what it hands to a student of another."""

    def __init__(self, config: TrialConfig, device: torch.device) -> None:
        self._device = device
        self._name: PrecisionName = config.teacher_precision
        self._is_another = config.teacher_precision != config.train.precision
        self._reads_features = METHODS[config.distill.method].features != "none"

    def forward(self) -> autocast:
        """The context of the forward pass."""
        return _autocast(self._name, self._device)

    def handed(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The features and logits for the student: of another precision's, those that its method reads, in fp32.

        That is the type of pictures, which every block and method takes, under autocast or not.
        """
        if not self._is_another:
            return outputs
        read = outputs if self._reads_features else outputs[-1:]
        return [output.float() for output in read]


def _autocast(name: PrecisionName, device: torch.device) -> autocast:
    dtype = _AUTOCAST.get(name)
    # No cast of a weight is kept: a CUDA graph may not read one, and rounds as its eager form does.
    return autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


class _AgreedGradScaler(GradScaler):
    """torch's GradScaler, told by all ranks together whether the update was skipped: it looks at no gradient."""

    def update_after(self, skipped: Tensor) -> None:
        # What `unscale_` would have found for one of the optimizers, here the only one.
        self._per_optimizer_states[0]["found_inf_per_device"] = {skipped.device: skipped}
        self.update()

    def on_device(self) -> Tensor | None:
        """The scale; None without scaling, or before the first loss."""
        return self._scale if self.is_enabled() else None
