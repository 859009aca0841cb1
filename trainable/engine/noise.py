"""Noise on the gradient (Neelakantan et al. 2015, with a constant deviation)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainable.data.hashing import stream_key

_LARGEST_SEED = 2**63 - 1


class GradientNoise:
    """g ← g + N(0, σ²), a function of (seed, update): the same on every rank, and after a restart."""

    def __init__(self, deviation: float, seed: int, device: torch.device) -> None:
        self._deviation, self._seed = deviation, seed
        self._generator = torch.Generator(device)

    def add(self, gradients: Sequence[Tensor], update: int) -> None:
        """In place; `update` is counted from 0 over all epochs."""
        self._generator.manual_seed(stream_key("noise", self._seed, update) & _LARGEST_SEED)
        for gradient in gradients:
            noise = torch.empty_like(gradient).normal_(generator=self._generator)
            gradient.add_(noise, alpha=self._deviation)
