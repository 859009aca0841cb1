"""Gradients in memory of their own, since an update changes each where it lies: it is summed, scaled and clipped there.

Autograd takes care of that for whole tensors only. Of `a.view(2, 3) + b.view(2, 3)` it leaves both gradients in one
place, and of `x + a.view(2, 3)` that of `a` where the one of `x` still flows on. A second micro-batch's is added there
twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# pyright: reportPrivateUsage=false

_HOLDERS = torch._C._storage_Use_Count


def keep_apart(parameters: Sequence[nn.Parameter]) -> None:
    """Copy gradients that overlap, all but one of those that do."""
    end = 0
    for parameter, gradient in sorted(_gradients(parameters), key=lambda pair: pair[1].data_ptr()):
        start = gradient.data_ptr()
        if start < end:
            parameter.grad = gradient.clone()
        else:
            end = start + gradient.numel() * gradient.element_size()


def take_away(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """All gradients, copied where anything but these holds their memory, as may be in the midst of a backward pass."""
    found = _gradients(parameters)
    held = Counter(gradient.untyped_storage()._cdata for _, gradient in found)
    for parameter, gradient in found:
        storage = gradient.untyped_storage()
        if _HOLDERS(storage._cdata) - 1 > held[storage._cdata]:  # which counts `storage`, too
            parameter.grad = gradient.clone()
    keep_apart(parameters)
    return [gradient for _, gradient in _gradients(parameters)]


def _gradients(parameters: Sequence[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
    return [(p, p.grad) for p in parameters if p.grad is not None]
