"""Feature alignment at the cuts, end to end: what `mse` and `kd_mse` have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.terms import feature_error
from trainable.errors import ConfigError, input_error


class FeatureErrors:
    """w_l·MSE(student_l, teacher_l) at each cut l whose weight is not 0."""

    def __init__(self, config: DistillConfig, cuts: tuple[str, ...]) -> None:
        if not cuts:
            rule = f"{config.method} compares features at the cuts, and there are none"
            raise input_error(ConfigError, "student.cuts", rule, "name one, or remove it")
        weights = config.feature_weights
        if weights is None:
            weights = dict.fromkeys(cuts, 1.0)
        unknown = [cut for cut in weights if cut not in cuts]
        if unknown:
            raise input_error(
                ConfigError,
                "distill.feature_weights",
                "must name cuts",
                f"choose from {', '.join(cuts)}",
                ", ".join(unknown),
            )
        scale = config.feature_scale
        self._weights = tuple(scale * weights.get(cut, 0.0) for cut in cuts)

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """(batch, …) features at every cut, in order, of equal shapes → sums over samples, each ()."""
        return [
            weight * feature_error(mine, theirs)
            for weight, mine, theirs in zip(self._weights, student, teacher, strict=True)
            if weight
        ]
