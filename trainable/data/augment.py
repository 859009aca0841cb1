"""Random crops and flips of a whole batch on its device, and normalization.

Every draw is a function of (seed, epoch, sample index): neither the other samples of the batch nor
the device, nor the draws before it, change a bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainable.data.hashing import GOLDEN, MULTIPLIERS, SHIFTS, stream_key

_FIELD_BITS = 24


def augmentation_key(seed: int, epoch: int) -> int:
    """The word that an epoch's draws come from, as the int64 with its bits; epochs are counted from 1."""
    return _signed(stream_key("augment", seed, epoch))


@dataclass(frozen=True)
class Views:
    """The pictures that a random crop and a mirror can make of one, numbered from 0.

    A crop is as large as the picture, and out of it with a border of zeros. They go from left to right, then from top
    to bottom; each is followed by itself mirrored if there is a `flip`.
    """

    crop: int
    """Pixels of the border on each side; 0 is off."""
    flip: bool

    def __len__(self) -> int:
        return self.row_choices * self.column_choices

    @property
    def row_choices(self) -> int:
        """Ways to choose a picture's rows."""
        return 2 * self.crop + 1

    @property
    def column_choices(self) -> int:
        """Ways to choose its columns, and their order."""
        return (2 * self.crop + 1) * (2 if self.flip else 1)

    def drawn(self, indices: Tensor, key: int) -> Tensor:
        """Each sample's, int64 (B,), by its index in the split, int64 (B,), and the epoch's `augmentation_key`.

        A crop's place is uniform, and with probability 1/2 it is mirrored.
        """
        words, side = _draws(indices, key), 2 * self.crop + 1
        place = _uniform(words, 40, side) * side + _uniform(words, 16, side)
        return place * 2 + (words & 1) if self.flip else place


class Viewer:
    """Shows pictures of one size in their views: with tables of the pixels, a batch takes few kernels."""

    def __init__(self, views: Views, size: tuple[int, int], device: torch.device) -> None:
        self._views = views
        height, width = (torch.arange(pixels, device=device) for pixels in size)
        start = torch.arange(2 * views.crop + 1, device=device)[:, None]
        ways = torch.stack([width, width.flip(0)]) if views.flip else width[None]
        self._rows = start + height
        """(views.row_choices, H): which of the padded picture's."""
        self._columns = (start[:, None] + ways).flatten(0, 1)
        """(views.column_choices, W)."""

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Pictures, and the number of a view of each: uint8 (B, C, H, W), int64 (B,) → uint8 (B, C, H, W).

        It lies in channels_last; where there is one view, it is `images` themselves. Nothing waits for the device.
        """
        if len(self._views) == 1:
            return images
        if crop := self._views.crop:
            images = F.pad(images, (crop, crop, crop, crop))
        batch = torch.arange(len(images), device=images.device)
        rows = self._rows[numbers // self._views.column_choices]
        columns = self._columns[numbers % self._views.column_choices]
        pixels = images.permute(0, 2, 3, 1)
        shown = pixels[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
        return shown.permute(0, 3, 1, 2)


def _draws(indices: Tensor, key: int) -> Tensor:
    """Word `indices[b]` of the stream `key` (`hashing.draws`), 64 bits in an int64, (B,)."""
    value = (indices + 1) * _signed(GOLDEN) + key
    value = _xor_shift(value, SHIFTS[0]) * _signed(MULTIPLIERS[0])
    value = _xor_shift(value, SHIFTS[1]) * _signed(MULTIPLIERS[1])
    return _xor_shift(value, SHIFTS[2])


def _xor_shift(value: Tensor, shift: int) -> Tensor:
    # int64 shifts copy the sign bit in; the mask makes it the logical shift of SplitMix64.
    return value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))


def _signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word; its arithmetic wraps around alike."""
    return word - (1 << 64) if word >> 63 else word


def _uniform(words: Tensor, low_bit: int, count: int) -> Tensor:
    """Integers in 0 .. count − 1 from 24 bits of each word: uniform to count / 2²⁴."""
    field = (words >> low_bit) & ((1 << _FIELD_BITS) - 1)
    return (field * count) >> _FIELD_BITS


class Normalizer:
    """(x / 255 − mean) / std as one multiply-add with its constants on the device."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        """`mean` and `std` of x / 255, one a channel."""
        self.scale, self.shift = _scale_and_shift(
            torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        )
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) → float32 (B, C, H, W)."""
        return (images * self.scale).add_(self.shift)


def _scale_and_shift(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """1 / (255 std) and −mean / std, float32 (C, 1, 1) each."""
    scale, shift = 1 / (255 * std), -mean / std
    return scale.float().view(-1, 1, 1), shift.float().view(-1, 1, 1)
