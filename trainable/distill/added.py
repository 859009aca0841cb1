"""CE + λ·term: what the methods have in common whose source adds a term to the cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.terms import CE, LOSS, Terms, cross_entropy, with_features
from trainable.networks.blocks import BlockNetwork


class AddedTerm:
    """L = CE + λ·Σ errors."""

    def __init__(self, config: DistillConfig) -> None:
        if config.lam is None:
            raise ValueError("lam must be set")
        self._lam = config.lam

    def __call__(
        self, student: BlockNetwork, logits: Tensor, labels: Tensor, errors: Sequence[Tensor]
    ) -> Terms:
        """The student's (batch, classes) plain logits, (batch,), each () → LOSS, CE and FEATURE."""
        ce = cross_entropy(student.with_margin(logits, labels), labels)
        return with_features({LOSS: ce, CE: ce}, errors, self._lam)
