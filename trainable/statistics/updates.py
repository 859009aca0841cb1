"""How far the parameters travel in an update (StableKD, §3)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainable.statistics import foreach
from trainable.statistics.gradients import BlockMembership, BlockNorms


class UpdateDistance:
    """‖θ_{t+1} − θ_t‖₂ by block, of the updates that are observed."""

    def __init__(self, membership: BlockMembership) -> None:
        self._membership = membership
        self._before = [torch.empty_like(p) for p in membership.parameters]

    @torch.no_grad()
    def remember(self) -> Tensor:
        """Keep the parameters as they are before the update; their total norm."""
        parameters = self._membership.parameters
        foreach.copy_(self._before, parameters)
        return self._membership.norms(self._before).total

    @torch.no_grad()
    def distance(self) -> BlockNorms:
        """Distance from what was remembered."""
        parameters = self._membership.parameters
        foreach.subtract_(self._before, parameters)
        return self._membership.norms(self._before)
