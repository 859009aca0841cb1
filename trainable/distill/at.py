"""`at`: attention transfer (Zagoruyko and Komodakis 2017, activation-based, eq. 1 and 2)."""

from __future__ import annotations

from functools import partial

from torch import Tensor
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
    # The kernels need Triton, which is there where they are asked for.
    from trainable.distill import attention_kernels

    if attention_kernels.takes(student, teacher):
        return attention_kernels.attention_error(student, teacher)
    return squared_error(attention(student), attention(teacher))


@partial(compilable, own=_own_attention_error)
def attention_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over samples of the mean squared difference of their attention maps → ()."""
    return squared_error(attention(student), attention(teacher))


def attention(feature: Tensor) -> Tensor:
    """Q/‖Q‖₂, of (batch, channels, height, width) → (batch, height·width), in fp32."""
    return F.normalize(feature.float().square().sum(1).flatten(1), dim=1)
