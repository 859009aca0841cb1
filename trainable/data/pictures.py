"""From a picture as it lies on disk to the uint8 (C, H, W) that a network is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainable.data.faults import data_error
from trainable.data.sources import RawSplit
from trainable.errors import DataError

Picture = npt.NDArray[np.uint8]

_GREY_WEIGHTS = np.asarray((19595, 38470, 7471), dtype=np.uint32)
"""ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B, in 2⁻¹⁶: as Pillow has it."""


def fit(
    picture: Picture, channels: int, image_size: int | None, resize: int | None = None
) -> Picture:
    """A picture (H, W, 1 or 3) as (channels, H', W'), contiguous.

    With an `image_size` the shorter side is resized to `resize` pixels (None: to `image_size`;
    bilinear, antialiased) and the centre cropped, as torchvision's Resize and CenterCrop do it.
    """
    picture = in_channels(picture, channels)
    if image_size is not None:
        picture = _centre(picture, resize or image_size, image_size)
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def in_channels(picture: Picture, channels: int) -> Picture:
    """(H, W, 1 or 3) → (H, W, channels): colour is turned grey by ITU-R 601, and grey repeated."""
    if channels == 1 and picture.shape[2] == 3:
        return ((picture @ _GREY_WEIGHTS + 0x8000) >> 16).astype(np.uint8)[:, :, None]
    if channels == 3 and picture.shape[2] == 1:
        return np.repeat(picture, 3, axis=2)
    return picture


def _centre(picture: Picture, short_side: int, size: int) -> Picture:
    height, width, channels = picture.shape
    short = min(height, width)
    high, wide = short_side * height // short, short_side * width // short
    image = Image.fromarray(picture[:, :, 0] if channels == 1 else picture)
    top, left = round((high - size) / 2), round((wide - size) / 2)
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    cropped = np.asarray(resized.crop((left, top, left + size, top + size)))
    return cropped.reshape(size, size, channels)


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of a split, decoded as they are asked for and brought to one shape."""

    raw: RawSplit
    image_size: int | None
    resize: int | None
    shape: tuple[int, int, int]
    """C, H, W."""

    @classmethod
    def of(
        cls, raw: RawSplit, channels: int, image_size: int | None, resize: int | None = None
    ) -> Pictures:
        """Without an `image_size` the first readable picture gives the size of all."""
        if image_size is not None:
            return cls(raw, image_size, resize, (channels, image_size, image_size))
        for index in range(len(raw)):
            try:
                height, width, _ = raw.image(index).shape
            except DataError:
                continue
            return cls(raw, None, None, (channels, height, width))
        raise data_error(
            raw.name(0) if len(raw) else "data.root",
            "must have at least one readable picture in each split",
            "check data.root",
            f"none of {len(raw)}",
        )

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures decoded."""
        return len(self.raw) * int(np.prod(self.shape))

    def fitted(self, row: int) -> Picture:
        """One picture, uint8 (C, H', W'): of another size than `shape` where the raw one was."""
        return fit(self.raw.image(row), self.shape[0], self.image_size, self.resize)

    def whole(self, row: int) -> Picture:
        """One picture of its own size, before it is resized or cropped: uint8 (H', W', C)."""
        return in_channels(self.raw.image(row), self.shape[0])

    def read(self, row: int) -> Picture:
        """One picture, uint8 (C, H, W); DataError if it is corrupt or has another size."""
        picture = self.fitted(row)
        if picture.shape != self.shape:
            raise data_error(
                self.raw.name(row),
                f"must be {size_text(self.shape)} pixels as the others are",
                "set data.image_size",
                size_text(picture.shape),
            )
        return picture


def size_text(shape: tuple[int, ...]) -> str:
    """`H×W` of a shape (C, H, W)."""
    return f"{shape[1]}×{shape[2]}"
