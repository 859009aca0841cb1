"""Norms of the gradient, by block and in total, before clipping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainable.statistics import foreach


@dataclass(frozen=True)
class BlockNorms:
    """2-norms of something that has one tensor a parameter, in fp32 on the device."""

    blocks: Tensor
    """(blocks,)."""
    total: Tensor
    """() of the whole student."""


class BlockMembership:
    """Which parameter belongs to which block."""

    def __init__(
        self, blocks: Iterable[tuple[str, Sequence[nn.Parameter]]], *, student: int
    ) -> None:
        """The first `student` blocks are the student's; a method trains those after them beside it."""
        self.student = student
        named = [(name, list(parameters)) for name, parameters in blocks]
        self.names = tuple(name for name, _ in named)
        self.parameters = [p for _, parameters in named for p in parameters if p.requires_grad]
        self.owners = [n for n, parameters in named for p in parameters if p.requires_grad]
        """The block of each."""
        rows = [
            [1.0 if any(p is q for q in parameters) else 0.0 for p in self.parameters]
            for _, parameters in named
        ]
        self._seen: set[int] = set()
        """The parameters that have had a gradient."""
        device = self.parameters[0].device
        self._belongs = torch.tensor(rows, device=device) > 0
        self._zero = torch.zeros((), device=device)

    def joined(self, norms: Tensor) -> BlockNorms:
        """(parameters,) 2-norms, in order → those of each block and of the whole student."""
        squares = self.sums(norms.square())
        return BlockNorms(squares.sqrt(), squares[: self.student].sum().sqrt())

    def sums(self, values: Tensor) -> Tensor:
        """(…, parameters) → the sum of each block: (…, blocks)."""
        # Not a product of matrices: there a value that is not finite would be every block's.
        return torch.where(self._belongs, values.unsqueeze(-2), self._zero).sum(-1)

    def largest(self, values: Tensor) -> Tensor:
        """(parameters,) of at least 0 → the largest of each block: (blocks,)."""
        return torch.where(self._belongs, values, self._zero).amax(1)

    def gradients(self) -> list[Tensor]:
        """The gradient of every parameter; each must have had one, and where this update gives none it is 0."""
        return [self._gradient(number) for number in range(len(self.parameters))]

    def _gradient(self, number: int) -> Tensor:
        parameter = self.parameters[number]
        if parameter.grad is None:
            if number not in self._seen:
                raise RuntimeError(
                    "a student parameter took no part in the loss and has no gradient"
                )
            parameter.grad = torch.zeros_like(parameter)
        self._seen.add(number)
        return parameter.grad


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """2-norm of each tensor, in fp32, (tensors,)."""
    return torch.stack(foreach.norms(tensors)).float()
