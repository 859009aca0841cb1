"""Autocast and loss scaling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.amp import GradScaler, autocast
from torch.optim import Optimizer

_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The type of the forward pass, and the loss scale that keeps fp16 gradients from vanishing.

    Without fp16 the scale is 1 and never moves.
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        self._device_type = device.type
        self._dtype = _TYPES[name]
        self.scaler = _AgreedGradScaler(device.type, enabled=name == "fp16")

    def forward(self) -> autocast:
        """The context of the forward pass."""
        return autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, in place."""
        self.scaler.unscale_(optimizer)

    def update(self, optimizer: Optimizer, skipped: Tensor) -> None:
        """Halve the scale after a skipped update, double it after many good ones; `skipped` is 0 or 1."""
        self.scaler.update_after(optimizer, skipped)


class _AgreedGradScaler(GradScaler):
    """torch's GradScaler, told by all ranks together whether the update was skipped."""

    def update_after(self, optimizer: Optimizer, skipped: Tensor) -> None:
        if not self.is_enabled():
            return
        state = self._per_optimizer_states[id(optimizer)]
        for found in state["found_inf_per_device"].values():
            found.copy_(skipped)
        self.update()
