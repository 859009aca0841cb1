"""What a source of pictures is, and what the sources have in common."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from trainable.config import DataConfig
from trainable.data.faults import data_error
from trainable.errors import DataError

SplitName = Literal["train", "test"]
Labels = npt.NDArray[np.int64]
Picture = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""What a picture may be encoded as. Pillow tries them in this order; all that it knows would take
twice the time of a small picture, and open files to decoders that nobody meant to use."""
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class RawSplit(Protocol):
    """One split as it lies on disk. It can be pickled, and threads may call `image` at once."""

    @property
    def labels(self) -> Labels:
        """Label of each picture, int64 (n,); not yet checked to lie in 0 .. classes − 1."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Picture:
        """One decoded picture, uint8 (H, W, 1 or 3); DataError, naming it, if it is corrupt."""
        ...

    def name(self, index: int) -> str:
        """Where one picture lies, as an error message should name it."""
        ...


class Source(Protocol):
    """A data set with a training and a test split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        ...

    def split(self, name: SplitName) -> RawSplit:
        """One split; DataError if it is missing or unreadable."""
        ...

    def fingerprint(self, name: SplitName) -> str:
        """Hex key of the bytes that a split's pictures and labels follow from."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """A `RawSplit` in memory."""

    labels: Labels
    pixels: npt.NDArray[np.uint8]
    """(n, H, W, C)."""
    origin: str
    """What the pictures are called in messages, e.g. `digits test`."""

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Picture:
        """One picture, uint8 (H, W, C)."""
        return self.pixels[index]

    def name(self, index: int) -> str:
        """E.g. `digits test[3]`."""
        return f"{self.origin}[{index}]"


def require_root(config: DataConfig) -> Path:
    """The data set's folder, absolute; DataError if none is named or it is not there."""
    if config.root is None:
        raise data_error(
            "data.root", f"{config.source} needs a folder", "name where its files are", "nothing"
        )
    root = Path(config.root).expanduser().absolute()
    if not root.is_dir() and not config.download:
        raise data_error("data.root", "must be a folder", "check the path", repr(config.root))
    return root


def rename_classes(own: Sequence[str], given: tuple[str, ...] | None) -> tuple[str, ...]:
    """`given` names in place of the set's own, label by label; DataError if the counts differ."""
    if given is None:
        return tuple(own)
    if len(given) != len(own):
        raise data_error(
            "data.classes",
            f"must name the {len(own)} classes of the data set",
            "give one name for each label, or remove it",
            f"{len(given)} names",
        )
    return given


def decode(data: bytes, name: str) -> Picture:
    """An encoded picture as uint8 (H, W, C): C is 1 for grey modes and 3 for all others.

    Transparency is dropped and EXIF orientation ignored, as torchvision does. DataError, naming
    the picture, if it cannot be decoded or has more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.mode not in _GREY_MODES + _COLOUR_MODES:
                raise ValueError(f"mode {picture.mode} is none of 8 bits a channel")
            if picture.mode == "P" and "transparency" in picture.info:
                array = np.asarray(picture.convert("RGBA").convert("RGB"))
            else:
                array = np.asarray(picture.convert("L" if picture.mode in _GREY_MODES else "RGB"))
    except (
        UnidentifiedImageError
    ) as error:  # whose own text names the bytes in memory, not the file
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise corrupt(name, f"it is none of {formats}" if data else "it is empty") from error
    except Exception as error:  # Pillow's plugins raise whatever they stumble over.
        raise corrupt(name, f"{type(error).__name__}: {error}") from error
    return array if array.ndim == 3 else array[:, :, None]


def corrupt(name: str, reason: str) -> DataError:
    """The error of a picture that cannot be read."""
    return data_error(
        name,
        f"must be a readable picture ({reason})",
        "repair it, or remove it from the data set",
    )
