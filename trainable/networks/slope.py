"""The slope of a network's answer: its gradient with respect to the pictures, along a random direction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Slope(NamedTuple):
    """∇_x Σ_b ⟨v_b, log p(x_b)⟩."""

    directions: Tensor
    """v: (batch, classes), each of length 1."""
    gradient: Tensor
    """Of the pictures' shape."""


def random_directions(logits: Tensor) -> Tensor:
    """(batch, classes) uniform on the unit sphere of classes, from torch's generator of the device."""
    return F.normalize(torch.randn_like(logits), dim=1)


def slope(images: Tensor, logits: Tensor, directions: Tensor, *, differentiable: bool) -> Tensor:
    """∇_x Σ_b ⟨v_b, log softmax(logits_b)⟩ of the pictures x that gave the logits; of their shape.

    With `differentiable` it is itself part of the graph. The logits must be of a pass in fp32, whose gradient needs
    no loss scale. Where BatchNorm ties the samples of a batch in training, so does this.
    """
    along = (directions * F.log_softmax(logits, dim=1)).sum()
    (gradient,) = torch.autograd.grad(along, images, create_graph=differentiable)
    return gradient
