"""`nst`: neuron selectivity transfer (Huang and Wang 2017)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainable.compiled import compilable
from trainable.distill.compared import ComparedMaps


class NeuronSelectivity(ComparedMaps):
    """L = CE + λ·Σ_l MMD²(F_T^l, F_S^l) over the cuts l, between the channels of the two networks.

    A channel's map, vectorised and of length 1, is one sample of a distribution over positions:
    MMD² = mean_ij k(f_T^i, f_T^j) + mean_ij k(f_S^i, f_S^j) − 2·mean_ij k(f_T^i, f_S^j), with the polynomial
    kernel k(x, y) = (xᵀy)² (d = 2, c = 0). So channels may differ. The source writes
    λ/2; λ = 50 is usual here (Tian et al. 2020, RepDistiller).
    """

    def error(self, student: Tensor, teacher: Tensor) -> Tensor:
        return squared_mmd(student, teacher)


@compilable
def squared_mmd(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over samples of MMD² between (batch, channels, height, width) maps of equal sizes, in fp32 → ()."""
    mine, theirs = (F.normalize(x.float().flatten(2), dim=2) for x in (student, teacher))
    with torch.autocast(student.device.type, enabled=False):
        between = _kernel(mine, theirs)
        return (_kernel(theirs, theirs) + _kernel(mine, mine) - 2 * between).sum()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean over channels i, j of (a_iᵀ b_j)²: (batch, channels, positions) each → (batch,)."""
    return (a @ b.mT).square().mean((1, 2))
