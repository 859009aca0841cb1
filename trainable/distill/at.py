"""`at`: attention transfer (Zagoruyko and Komodakis 2017, activation-based, eq. 1 and 2)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainable.compiled import compilable
from trainable.distill.compared import ComparedMaps
from trainable.distill.terms import squared_error


class AttentionTransfer(ComparedMaps):
    """L = CE + λ·Σ_l mean_j (Q_S^l/‖Q_S^l‖₂ − Q_T^l/‖Q_T^l‖₂)_j² over the cuts l and the positions j.

    Q = vec(Σ_c A_c²) is the attention map of activations A, one value a position, so channels may differ.
    Eq. 2 writes β/2 and the norm itself, with β = 10³ over the elements of the map; the authors' code squares the
    norm and takes the mean over positions, as here: λ = 1000 is its weight.
    """

    def error(self, student: Tensor, teacher: Tensor) -> Tensor:
        return attention_error(student, teacher)


def _own_attention_error(student: Tensor, teacher: Tensor) -> Tensor:
    energies: list[Tensor] = [_Energy.apply(x) for x in (student, teacher)]  # pyright: ignore[reportUnknownMemberType]
    return squared_error(*map(_of_length_1, energies))


@partial(compilable, own=_own_attention_error)
def attention_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over samples of the mean squared difference of their attention maps → ()."""
    return squared_error(attention(student), attention(teacher))


def attention(feature: Tensor) -> Tensor:
    """Q/‖Q‖₂, of (batch, channels, height, width) → (batch, height·width), in fp32."""
    return _of_length_1(feature.float().square().sum(1))


def _of_length_1(energy: Tensor) -> Tensor:
    return F.normalize(energy.flatten(1), dim=1)


class _Energy(torch.autograd.Function):
    """Σ_c A_c² in fp32, (batch, channels, …) → (batch, …), each way in one kernel that makes no copy in fp32."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor) -> Tensor:
        ctx.save_for_backward(feature)
        return torch.linalg.vector_norm(feature, dim=1, dtype=torch.float32).square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        (feature,) = ctx.saved_tensors
        return torch.mul(feature, 2 * gradients[0].unsqueeze(1), out=torch.empty_like(feature))
