"""`at`: attention transfer (Zagoruyko and Komodakis 2017, activation-based, eq. 1 and 2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trainable.config import DistillConfig
from trainable.distill.added import AddedTerm
from trainable.distill.maps import FeatureShapes, map_pairs
from trainable.distill.terms import Terms, feature_error
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import TeacherOutputs


class AttentionTransfer:
    """L = CE + λ·Σ_l mean_j (Q_S^l/‖Q_S^l‖₂ − Q_T^l/‖Q_T^l‖₂)_j² over the cuts l and the positions j.

    Q = vec(Σ_c A_c²) is the attention map of activations A, one value a position, so channels may differ.
    Eq. 2 writes β/2 and the norm itself, with β = 10³ over the elements of the map; the authors' code squares the
    norm and takes the mean over positions, as here: λ = 1000 is its weight.
    """

    def __init__(self, config: DistillConfig, shapes: FeatureShapes | None) -> None:
        map_pairs("at", shapes, equal_sizes=True)
        self._added = AddedTerm(config)

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        *features, logits = student.features(images)
        errors = [
            feature_error(attention(mine), attention(theirs))
            for mine, theirs in zip(features, teacher.features, strict=True)
        ]
        return self._added(student, logits, labels, errors)


def attention(feature: Tensor) -> Tensor:
    """Q/‖Q‖₂, of (batch, channels, height, width) → (batch, height·width), in fp32."""
    return F.normalize(feature.float().square().sum(1).flatten(1), dim=1)
