"""Heads other than a linear layer: embedding → logits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MARGIN = 0.2
"""AM-Softmax's m unless the config says otherwise."""
SCALE = 30.0
"""AM-Softmax's s unless the config says otherwise."""


class AMSoftmax(nn.Module):
    """Logits s·cos θ_c between an embedding and each class's weight vector (Wang et al. 2018, eq. 6).

    The margin is not part of the forward: `with_margin` takes it off the logits that the forward gave, so
    that the plain ones and those of the training's cross-entropy come from one forward.
    """

    def __init__(
        self, width: int, classes: int, margin: float = MARGIN, scale: float = SCALE
    ) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(torch.empty(classes, width))
        # Directions uniform on the sphere, of length about 1: the length cancels in the logits, but a
        # shorter vector is turned further by an update of the same size.
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, embedding: Tensor) -> Tensor:
        """s·cos θ in fp32, under autocast too; (batch, width) → (batch, classes)."""
        with _no_autocast(embedding.device.type):
            directions = F.normalize(self.weight.float(), dim=1)
            return self.scale * F.linear(F.normalize(embedding.float(), dim=1), directions)

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """s·(cos θ − m) at the label, s·cos θ elsewhere; (batch, classes), (batch,) → (batch, classes).

        A label that is no class gets no margin.
        """
        classes = torch.arange(logits.shape[1], device=logits.device)
        at_label = labels.unsqueeze(1) == classes
        return torch.where(at_label, logits - self.scale * self.margin, logits)

    def extra_repr(self) -> str:
        classes, width = self.weight.shape
        return f"{width}, {classes}, margin={self.margin:g}, scale={self.scale:g}"


class DistilledHead(nn.Module):
    """DeiT's two linear layers, for the class token and for the distillation token (Touvron et al. 2021, §4).

    The mean of their logits is the network's: the authors' code takes it so, the paper adds softmaxes.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, classes)
        self.distillation = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean of the two tokens' logits; (batch, tokens, width) → (batch, classes)."""
        class_logits, distillation_logits = self.both(tokens)
        return (class_logits + distillation_logits) / 2

    def both(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the class token, which is the first, and of the distillation token, the second.

        (batch, tokens, width) → twice (batch, classes): one learns from labels, the other from the teacher.
        """
        return self.classifier(tokens[:, 0]), self.distillation(tokens[:, 1])


def _no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Autocast off, on devices that have it; meta tensors, which have only shapes, have not."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
