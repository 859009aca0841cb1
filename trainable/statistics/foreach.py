"""torch's kernels over many tensors at once, which it uses itself but does not export with types."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false


def norms(tensors: Sequence[Tensor], order: float = 2) -> list[Tensor]:
    """Norm of each tensor, as () tensors; `order` 2, or inf for the largest size of an element."""
    return list(torch._foreach_norm(list(tensors), order))


def multiply_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply each tensor by a () tensor, in place."""
    torch._foreach_mul_(list(tensors), factor)


def multiply_each_(tensors: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    """Multiply each tensor by its own () tensor, in place."""
    torch._foreach_mul_(list(tensors), list(factors))


def divide_(tensors: Sequence[Tensor], divisor: Tensor) -> None:
    """Divide each tensor by a () tensor, in place."""
    torch._foreach_div_(list(tensors), divisor)


def clamp_(tensors: Sequence[Tensor], bound: float) -> None:
    """Bring every element into −bound .. bound, in place."""
    torch._foreach_clamp_min_(list(tensors), -bound)
    torch._foreach_clamp_max_(list(tensors), bound)


def copy_(destinations: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source to its destination."""
    torch._foreach_copy_(list(destinations), list(sources))


def subtract_(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Subtract each other tensor, in place."""
    torch._foreach_sub_(list(tensors), list(others))
