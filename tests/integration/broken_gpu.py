"""A network whose GPU fails in the middle of a trial: from then on, whatever its process tries there fails."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

MARK = "KD_STUDY_TEST_FAULT"
"""Names a file: while it is there, the fault is still to come."""
IN_EPOCH_2 = 30
"""Of 17 updates an epoch."""
SAID = "CUDA error: an illegal memory access was encountered"
_is_broken = False
"""As CUDA's context is, for as long as its process lives."""


class Breaks(nn.Module):
    """In a trial's second epoch, once in a study; and everywhere in a process in which that was."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    def forward(self, x: Tensor) -> Tensor:
        global _is_broken
        self.updates += self.training
        mark = Path(os.environ[MARK])
        if self.updates == IN_EPOCH_2 and mark.exists():
            mark.unlink()
            _is_broken = True
        if _is_broken:
            raise torch.AcceleratorError(SAID)
        return x


def network(num_classes: int, in_channels: int) -> nn.Module:
    """A small one."""
    features = nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*features, Breaks(), nn.Flatten(), nn.Linear(512, num_classes))
