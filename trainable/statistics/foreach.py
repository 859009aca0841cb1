"""torch's kernels over many tensors at once, which it uses itself but does not export with types."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """2-norm of each tensor, as () tensors."""
    return list(torch._foreach_norm(list(tensors), 2))


def multiply_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply each tensor by a () tensor, in place."""
    torch._foreach_mul_(list(tensors), factor)


def copy_(destinations: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source to its destination."""
    torch._foreach_copy_(list(destinations), list(sources))


def subtract_(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Subtract each other tensor, in place."""
    torch._foreach_sub_(list(tensors), list(others))
