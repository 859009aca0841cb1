"""Some of a set's samples, and the way to their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainable.data.pictures import Picture, Pictures

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class Reader(Protocol):
    """From a streamed picture to what the networks are given. It can be pickled."""

    def __call__(self, pictures: Pictures, row: int, /) -> Picture:
        """uint8, of the shape of `pictures`; DataError if the picture is corrupt."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Training, validation or test samples. Sample i is row `rows[i]` of what lies on disk.

    Exactly one of `stored` and `pictures` is set.
    """

    labels: npt.NDArray[np.int64]
    """(n,)."""
    rows: Indices
    """(n,), ascending."""
    shape: tuple[int, int, int]
    """C, H, W."""
    stored: Pixels | None
    """(N, C, H, W), N ≥ n: the memory-mapped, read-only file, shared with other splits of it."""
    pictures: Pictures | None
    """The encoded pictures of a split that is streamed."""
    reader: Reader = Pictures.read
    """How those are read."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def streamed(self) -> bool:
        """Whether pictures are decoded as they are asked for."""
        return self.stored is None

    @property
    def pixels(self) -> Pixels | None:
        """All pictures, (n, C, H, W); None where they are streamed.

        The memory map itself where the split is the whole file, otherwise a copy: to read a part,
        use `images`.
        """
        if self.stored is None or len(self.rows) == len(self.stored):
            return self.stored
        return self.stored[self.rows]

    def images(self, indices: Indices) -> Pixels:
        """The pictures of some samples, (b, C, H, W), writable; DataError if one is corrupt."""
        rows = self.rows[indices]
        if self.stored is not None:
            return self.stored[rows]
        assert self.pictures is not None
        images = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for place, row in enumerate(rows):
            images[place] = self.reader(self.pictures, int(row))
        return images
