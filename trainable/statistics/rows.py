"""One tensor a parameter in one buffer, so that a few kernels measure all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainable.statistics import foreach

_WIDTH = 1024


@dataclass(frozen=True)
class Moments:
    """What is summed up over the entries of each parameter's tensor; each is (parameters,) in fp64."""

    sums: Tensor
    squares: Tensor
    largest: Tensor
    """Largest size of an entry."""
    nonzero: Tensor
    nonfinite: Tensor


class Rows:
    """Room for one fp32 tensor a parameter: as much memory as the parameters themselves.

    Each tensor fills rows of its own, the last one padded with zeros, which no measure notices.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        device = parameters[0].device
        counts = [-(-p.numel() // _WIDTH) for p in parameters]
        # The last row stays zero: where `_of` says so, a parameter has no more rows.
        buffer = torch.zeros((sum(counts) + 1) * _WIDTH, device=device)
        self._rows = buffer.view(-1, _WIDTH)
        self._of = torch.full((len(counts), max(counts)), sum(counts), device=device)
        self._views: list[Tensor] = []
        start = 0
        for number, (parameter, count) in enumerate(zip(parameters, counts, strict=True)):
            self._of[number, :count] = torch.arange(start, start + count)
            # Laid out as the parameter is (channels_last, say), or copying would take a kernel for each.
            view = buffer.as_strided(parameter.shape, parameter.stride(), start * _WIDTH)
            self._views.append(view)
            start += count

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Copy a tensor of each parameter's shape, in order."""
        foreach.copy_(self._views, tensors)

    def subtract(self, tensors: Sequence[Tensor]) -> None:
        """Subtract a tensor of each parameter's shape, in order."""
        foreach.subtract_(self._views, tensors)

    def squares(self) -> Tensor:
        """Σ x² of each tensor: (parameters,) in fp64."""
        return self._total(torch.linalg.vector_norm(self._rows, dim=1, dtype=torch.float64) ** 2)

    def moments(self) -> Moments:
        """All that is measured of each tensor."""
        rows = self._rows
        return Moments(
            self._total(rows.sum(1, dtype=torch.float64)),
            self.squares(),
            torch.linalg.vector_norm(rows, torch.inf, 1).double()[self._of].amax(1),
            self._total((rows != 0).sum(1)),
            self._total((~rows.isfinite()).sum(1)),
        )

    def _total(self, rows: Tensor) -> Tensor:
        """(rows,) → (parameters,), in the same order whatever the device."""
        return rows.double()[self._of].sum(1)
