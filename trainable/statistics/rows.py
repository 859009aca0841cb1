"""One tensor a parameter in one buffer, so that a few kernels measure all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainable.statistics import foreach

_WIDTH = 1024


class Moments(NamedTuple):
    """What is summed up over the entries of each parameter's tensor; each is (parameters,) in fp64."""

    sums: Tensor
    squares: Tensor
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
            self._views.append(buffer[start * _WIDTH :][: parameter.numel()])
            start += count

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Copy a tensor of each parameter's size, in order."""
        foreach.copy_(self._views, [_flat(tensor) for tensor in tensors])

    def subtract(self, tensors: Sequence[Tensor]) -> None:
        """Subtract tensors that are laid out in memory like those that were copied."""
        foreach.subtract_(self._views, [_flat(tensor) for tensor in tensors])

    def squares(self) -> Tensor:
        """Σ x² of each tensor: (parameters,) in fp64, to 5e-6.

        In fp32 over 1024 entries at a time, since for fp64 torch would write a copy of all entries first: those
        below 1e-22 count as 0, and above 1e17 the sum is infinite.
        """
        norms = torch.linalg.vector_norm(self._rows, dim=1)
        return self._total(norms.double().square())

    def moments(self) -> Moments:
        """All that is summed up of each tensor."""
        rows = self._rows
        nonzero, nonfinite = (torch.linalg.vector_norm(r, 0, 1) for r in (rows, rows - rows))
        # One copy in fp64 for both sums, of which a deviation is a small difference.
        wide = rows.double()
        squares = torch.linalg.vector_norm(wide, dim=1).square()
        parts = [wide.sum(1), squares, nonzero.double(), nonfinite.double()]
        return Moments(*self._total(torch.stack(parts)))

    def largest(self) -> Tensor:
        """Largest size of an entry of each tensor: (parameters,) in fp64."""
        return torch.linalg.vector_norm(self._rows, torch.inf, 1)[self._of].amax(1).double()

    def _total(self, rows: Tensor) -> Tensor:
        """(…, rows) → (…, parameters), in the same order whatever the device."""
        return rows[..., self._of].sum(-1)


def _flat(tensor: Tensor) -> Tensor:
    """The entries in the order in which they lie in memory, as torch's kernels over many tensors want them."""
    if not tensor.is_contiguous() and tensor.dim() == 4:
        tensor = tensor.permute(0, 2, 3, 1)  # channels_last
    return tensor.reshape(-1)
