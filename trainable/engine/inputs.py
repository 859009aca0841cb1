"""Looking at every micro-batch before it is trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

INPUT, LABEL = "input", "label"

_POSITION_BITS, _NUMBER_BITS = 24, 16
_ROUNDING = 1e-5
"""How far from 1 the sum of a distribution's two parts may be."""


class Place(NamedTuple):
    """Where this rank first found a bad sample."""

    update: int
    """Counted from 0, over all epochs."""
    micro_batch: int
    """Counted from 0, within the update."""
    position: int
    """Counted from 0, within the micro-batch."""


class Inputs:
    """Finds pictures that are not finite and labels that no class has, without waiting for the device."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self.found = torch.zeros(2, device=device)
        """(2,): 1.0 where this update has had a bad picture, and a bad label, so far."""
        self._place = torch.full((), -1, dtype=torch.int64, device=device)
        self._update = torch.zeros((), dtype=torch.int64, device=device)

    def enter(self, update: int) -> None:
        """Updates are counted on the device: the next one has this number."""
        self._update.fill_(update)

    def start(self) -> None:
        """A new update begins."""
        self.found.zero_()

    def in_range(self, labels: Tensor) -> Tensor:
        """Labels that each are a class's, of those that may not be; distributions stay as they are.

        A label out of range would stop a CUDA device for good, in an assertion of the cross-entropy.
        """
        return labels if labels.is_floating_point() else labels.clamp(0, self._classes - 1)

    def look(self, images: Tensor, labels: Tensor, number: int) -> None:
        """Look at micro-batch `number` of an update.

        (B, C, H, W) and int64 (B,), or float (B, classes): distributions, of which a label that no class
        has lacks a part, here and in the picture that it was mixed with.
        """
        broken = ~images.isfinite().flatten(1).all(1)
        if labels.is_floating_point():
            # The label of a picture lacks in it and in the one after, which is mixed with it: 1 in all.
            lacks = 1 - labels.sum(1)
            outside = (lacks > _ROUNDING) & (lacks + lacks.roll(-1) > 1 - _ROUNDING)
        else:
            outside = (labels < 0) | (labels >= self._classes)
        found = torch.stack([broken.any(), outside.any()])
        first = (broken | outside).to(torch.float32).argmax()
        place = first + (((self._update << _NUMBER_BITS) + number) << _POSITION_BITS)
        self._place.copy_(torch.where((self._place < 0) & found.any(), place, self._place))
        self.found.copy_(torch.maximum(self.found, found.to(torch.float32)))

    def place(self) -> Place | None:
        """Where the first bad sample of this rank was. Waits for the device."""
        code = int(self._place)
        if code < 0:
            return None
        position = code & ((1 << _POSITION_BITS) - 1)
        number = (code >> _POSITION_BITS) & ((1 << _NUMBER_BITS) - 1)
        return Place(code >> (_POSITION_BITS + _NUMBER_BITS), number, position)
