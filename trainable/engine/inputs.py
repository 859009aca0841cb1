"""Looking at every micro-batch before it is trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

INPUT, LABEL = "input", "label"

_POSITION_BITS, _NUMBER_BITS = 20, 16
_UPDATES = 1 << (63 - _POSITION_BITS - _NUMBER_BITS)
_NEVER = 2**63 - 1
"""Is after the code of every sample."""
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
        self._none = torch.full((2,), _NEVER, device=device)
        self._first = self._none.clone()
        """Codes of the first sample with a bad picture, and of the first with a bad label."""
        self._now = self._none
        """As `_first`, of this update."""
        self._start = torch.zeros((), dtype=torch.int64, device=device)
        """The code of its first sample."""

    def enter(self, update: int) -> None:
        """Updates are counted on the device: the next one has this number, up to the largest that fits a code."""
        self._start.fill_(_code(min(update, _UPDATES - 1)))

    def start(self) -> None:
        """A new update begins."""
        self._now = self._none

    @property
    def found(self) -> Tensor:
        """(2,): 1.0 where this update has had a bad picture, and a bad label, so far."""
        return (self._now < self._none).to(torch.float32)

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
        sizes = torch.linalg.vector_norm(images, torch.inf, dim=(1, 2, 3))
        if labels.is_floating_point():
            # The label of a picture lacks in it and in the one after, which is mixed with it: 1 in all.
            lacks = 1 - labels.sum(1)
            known = (lacks <= _ROUNDING) | (lacks + lacks.roll(-1) <= 1 - _ROUNDING)
        else:
            known = labels == self.in_range(labels)
        good = torch.stack([sizes < torch.inf, known])
        start = _code(0, number)
        codes = torch.arange(start, start + len(labels), device=labels.device) + self._start
        first = torch.where(good, self._none[:, None], codes).amin(1)
        self._now = torch.minimum(self._now, first)
        torch.minimum(self._first, first, out=self._first)

    def place(self) -> Place | None:
        """Where the first bad sample of this rank was. Waits for the device."""
        code = int(self._first.amin())
        if code == _NEVER:
            return None
        position = code & ((1 << _POSITION_BITS) - 1)
        number = (code >> _POSITION_BITS) & ((1 << _NUMBER_BITS) - 1)
        return Place(code >> (_POSITION_BITS + _NUMBER_BITS), number, position)


def _code(update: int, number: int = 0) -> int:
    """Of the first sample of a micro-batch: codes are in the order in which samples are looked at."""
    return ((update << _NUMBER_BITS) + number) << _POSITION_BITS
