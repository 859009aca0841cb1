"""Some of a set's samples, and the way to their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainable.data.pictures import Pictures

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


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
            images[place] = self.pictures.read(int(row))
        return images
