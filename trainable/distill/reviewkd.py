"""`reviewkd`: knowledge review (Chen et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainable.config import DistillConfig
from trainable.distill.added import AddedTerm
from trainable.distill.maps import FeatureShapes, Map, map_pairs
from trainable.distill.terms import Terms, feature_error
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs

_WIDEST = 512
"""Most channels of the fused features, as in the source."""
_LEVELS = (4, 2, 1)
"""Sides of the pooled maps in the hierarchical context loss."""


class ReviewKD(nn.Module):
    """L = CE + λ·Σ_l HCL(U_l, F_T^l) over the cuts l, where U_l reviews the student's features at l and deeper.

    From the deepest cut to the shallowest, each feature of the student is fused with what the deeper ones gave
    (`Fusion`, the source's ABF) and compared with the teacher's (`hierarchical_error`, HCL). The fusions'
    own convolutions bring it to the teacher's channels, nearest interpolation to its height and width. They are
    trained with the student and are no part of it: none is evaluated or kept. The source tunes λ for each pair
    of networks, lets it rise over the first epochs and also compares the pooled embedding; neither is done here.
    """

    def __init__(self, config: DistillConfig, shapes: FeatureShapes | None) -> None:
        super().__init__()
        pairs = map_pairs("reviewkd", shapes, equal_sizes=False)
        self._added = AddedTerm(config)
        deepest, _ = pairs[-1]
        width = min(_WIDEST, deepest.channels)
        self.fusions = nn.ModuleList(
            Fusion(mine, theirs, width, fuses=mine is not deepest) for mine, theirs in pairs
        )

    def forward(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        *features, logits = student.features(images)
        errors: list[Tensor] = []
        fused: Tensor | None = None
        cuts = zip(self.fusions, features, teacher.features, strict=True)
        for fusion, mine, theirs in reversed(list(cuts)):
            reviewed, fused = fusion(mine, fused)
            errors.append(hierarchical_error(reviewed, theirs))
        return self._added(student, logits, labels, errors)


class Fusion(nn.Module):
    """Attention-based fusion (ABF): a feature of the student with what the deeper ones gave.

    x' = BN(conv₁ₓ₁(x)); a, b = σ(conv₁ₓ₁([x', y])), one value a position each; z = a·x' + b·y, with y resized to
    x'. The output is BN(conv₃ₓ₃(z)); z goes on to the next shallower cut. The deepest has z = x'.
    """

    def __init__(self, student: Map, teacher: Map, width: int, *, fuses: bool) -> None:
        super().__init__()
        self._size = (teacher.height, teacher.width)
        self.reduce = _normed(nn.Conv2d(student.channels, width, 1, bias=False))
        self.expand = _normed(nn.Conv2d(width, teacher.channels, 3, padding=1, bias=False))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """(batch, channels, height, width) of the student, z of the deeper cut → of the teacher's shape, and z."""
        x = self.reduce(x)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([x, deeper], 1)).sigmoid()
            x = weights[:, :1] * x + weights[:, 1:] * deeper
        if x.shape[2:] != self._size:
            x = F.interpolate(x, self._size, mode="nearest")
        return self.expand(x), x


def hierarchical_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over samples of the hierarchical context loss between maps of equal shape (batch, …), in fp32 → ().

    The mean squared difference of the maps and, with half the weight each time, of the maps pooled to 4×4, 2×2
    and 1×1 where those are smaller; divided by the sum of the weights.
    """
    student, teacher = student.float(), teacher.float()
    error, weight, weights = feature_error(student, teacher), 1.0, 1.0
    for side in _LEVELS:
        if side < min(student.shape[2:]):
            weight /= 2
            weights += weight
            error = error + weight * feature_error(pooled(student, side), pooled(teacher, side))
    return error / weights


def pooled(x: Tensor, side: int) -> Tensor:
    """Adaptive average pooling to (batch, channels, side, side); unlike torch's, deterministic on GPUs."""
    for dim in (2, 3):
        size = x.shape[dim]
        edges = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        x = torch.stack([x.narrow(dim, a, b - a).mean(dim) for a, b in edges], dim)
    return x


def _normed(conv: nn.Conv2d) -> nn.Sequential:
    """A convolution and its BatchNorm, begun as in the source."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))
