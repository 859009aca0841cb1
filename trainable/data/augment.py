"""Random crops and flips of a whole batch on its device, and normalization.

Every draw is a function of (seed, epoch, sample index): neither the other samples of the batch nor
the device, nor the draws before it, change a bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainable.data.hashing import GOLDEN, MULTIPLIERS, SHIFTS, stream_key

_FIELD_BITS = 24


def augmentation_key(seed: int, epoch: int) -> int:
    """The word that an epoch's draws come from, as the int64 with its bits; epochs are counted from 1."""
    return _signed(stream_key("augment", seed, epoch))


def augment(images: Tensor, indices: Tensor, key: Tensor, *, crop: int, flip: bool) -> Tensor:
    """Zero-pad by `crop` pixels and crop back at a random place, then mirror with probability 1/2.

    Args:
        images: uint8 (B, C, H, W).
        indices: int64 (B,), the samples' indices in their split, on the same device.
        key: int64 (), the `augmentation_key` of seed and epoch, on the same device.
        crop: Pixels of padding on each side; offsets are uniform in 0 .. 2·crop. 0 is off.
        flip: Whether to mirror at all.

    Returns:
        uint8 (B, C, H, W), contiguous; `images` itself where both are off. Nothing waits for the
        device.
    """
    if crop == 0 and not flip:
        return images
    return _moved(images, _moves(indices, key, crop=crop, flip=flip), crop)


@dataclass(frozen=True)
class Views:
    """The pictures that `augment` can make of one, numbered from 0."""

    crop: int
    flip: bool

    def __len__(self) -> int:
        return (2 * self.crop + 1) ** 2 * (2 if self.flip else 1)

    def drawn(self, indices: Tensor, key: Tensor) -> Tensor:
        """Which of them each picture gets from `augment`, arguments as there: int64 (B,)."""
        moves = _moves(indices, key, crop=self.crop, flip=self.flip)
        place = moves.top * (2 * self.crop + 1) + moves.left
        return place * 2 + moves.mirrored if self.flip else place

    def shown(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Each picture in one of them: uint8 (B, C, H, W), int64 (B,) → uint8 (B, C, H, W)."""
        side, ways = 2 * self.crop + 1, 2 if self.flip else 1
        place = numbers // ways
        moves = _Moves(place // side, place % side, numbers % ways)
        return _moved(images, moves, self.crop)


class _Moves(NamedTuple):
    """Where each picture of a batch is cropped, int64 (B,) each."""

    top: Tensor
    """In 0 .. 2·crop."""
    left: Tensor
    """In 0 .. 2·crop."""
    mirrored: Tensor
    """0 or 1."""


def _moves(indices: Tensor, key: Tensor, *, crop: int, flip: bool) -> _Moves:
    words, still = _draws(indices, key), torch.zeros_like(indices)
    top = _uniform(words, 40, 2 * crop + 1) if crop else still
    left = _uniform(words, 16, 2 * crop + 1) if crop else still
    return _Moves(top, left, words & 1 if flip else still)


def _moved(images: Tensor, moves: _Moves, crop: int) -> Tensor:
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).expand(len(images), height)
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    columns = torch.where(moves.mirrored.bool()[:, None], width - 1 - columns, columns)
    if crop:
        images = F.pad(images, (crop, crop, crop, crop))
    return _gather(images, rows + moves.top[:, None], columns + moves.left[:, None])


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`images[b, c, rows[b, y], columns[b, x]]` at (b, c, y, x); rows (B, H), columns (B, W)."""
    batch, channels, _, width = images.shape
    flat = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None]
    picked = images.flatten(2).gather(2, flat.expand(-1, channels, -1))
    return picked.view(batch, channels, rows.shape[1], columns.shape[1])


def _draws(indices: Tensor, key: Tensor) -> Tensor:
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
