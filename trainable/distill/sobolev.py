"""`sobolev`: Sobolev training (Czarnecki et al. 2017; StableKD's baseline ST)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainable.config import DistillConfig
from trainable.distill.kd import LogitLoss
from trainable.distill.terms import Terms, with_features
from trainable.networks.blocks import BlockNetwork
from trainable.networks.slope import slope
from trainable.networks.teacher import TeacherOutputs


class Sobolev:
    """L = (1 − α)·CE + α·T²·KL + λ·Σ_b ‖∇_x⟨v_b, log p_S⟩ − ∇_x⟨v_b, log p_T⟩‖₂².

    The values and the first derivatives of the teacher's log-probabilities (eq. 1, order 1), the Jacobian along a
    direction v_b drawn for each sample from the unit sphere (eq. 2, stochastic). The squared norm is over the
    picture's elements. The source learns from the teacher alone (α = 1); α = 0 is CE and the derivatives. Both
    networks run in fp32, whatever `train.precision` says.
    """

    def __init__(self, config: DistillConfig) -> None:
        if config.alpha is None or config.lam is None:
            raise ValueError("alpha and lam must be set")
        self._logit_loss = LogitLoss(config.model_copy(update={"lam": None}))
        self._lam = config.lam

    def __call__(
        self, student: BlockNetwork, images: Tensor, labels: Tensor, teacher: TeacherOutputs
    ) -> Terms:
        if teacher.slope is None:
            raise ValueError("the teacher must be asked for its slope")
        with torch.autocast(images.device.type, enabled=False):
            images = images.detach().requires_grad_()
            logits = student(images)
            mine = slope(images, logits, teacher.slope.directions, differentiable=True)
        terms = self._logit_loss(student, logits, labels, teacher.logits)
        return with_features(terms, [(mine - teacher.slope.gradient).square().sum()], self._lam)
