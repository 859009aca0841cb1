"""Networks of which autograd leaves gradients in memory that something else holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Offset(nn.Module):
    """Of one picture, the offset's gradient is the very one that flows on to the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.offset = nn.Linear(3, 4), nn.ParameterList([torch.randn(4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.offset[0].unsqueeze(0)


class Halves(nn.Module):
    """Both have their gradient in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.randn(12)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.one.view(3, 4) + self.two.view(3, 4))


class Scaled(nn.Module):
    """The gradients of both are rows of one matrix, as BatchNorm's are in own kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.rows = nn.ParameterList(nn.Parameter(torch.randn(4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = torch.stack(list(self.rows)).unbind()
        return self.layer(x) * scale + shift
