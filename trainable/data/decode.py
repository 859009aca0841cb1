"""Decoding many pictures once, and saying all that is wrong with them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainable.data.decoded import Decoded
from trainable.data.pictures import Pictures, size_text
from trainable.errors import DataError, Problem

NAMED = 5
"""Corrupt pictures that an error names one by one; the others are counted."""
_CHUNK = 256


def decode_rows(pictures: Pictures, rows: npt.NDArray[np.int64], *, keep: bool) -> Decoded:
    """The pictures of some rows, decoded by as many threads as there are cores.

    Args:
        pictures: All pictures of the split.
        rows: Which of them, (n,).
        keep: Whether to keep the pixels (in memory, n·C·H·W bytes), or only their sums and hashes.

    Raises:
        DataError: With every kind of fault at once: corrupt pictures, up to `NAMED` of them by
            name, and pictures of differing sizes.
    """
    count, channels = len(rows), pictures.shape[0]
    decoded = Decoded(
        labels=pictures.raw.labels[rows],
        sums=np.zeros((count, channels), dtype=np.int64),
        squares=np.zeros((count, channels), dtype=np.int64),
        hashes=np.zeros(count, dtype=np.uint64),
        shape=pictures.shape,
        pixels=np.empty((count, *pictures.shape), dtype=np.uint8) if keep else None,
    )

    def chunk(start: int) -> _Faults:
        return _decode_chunk(pictures, rows[start : start + _CHUNK], start, decoded)

    faults = _Faults()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for found in pool.map(chunk, range(0, count, _CHUNK)):
            faults.corrupt += found.corrupt
            faults.sizes.update(found.sizes)
    if problems := faults.problems(count):
        raise DataError(problems)
    return decoded


@dataclass
class _Faults:
    corrupt: list[Problem] = field(default_factory=list[Problem])
    sizes: Counter[str] = field(default_factory=Counter[str])

    def problems(self, count: int) -> list[Problem]:
        found = self.corrupt[:NAMED]
        if len(self.corrupt) > NAMED:
            found.append(
                Problem(
                    "data.root",
                    f"all {count:,} pictures of a split must be readable",
                    f"repair or remove them; {NAMED} are named above",
                    f"{len(self.corrupt):,} corrupt ones",
                )
            )
        if len(self.sizes) > 1:
            counts = ", ".join(f"{size} ({n:,})" for size, n in self.sizes.most_common(NAMED))
            found.append(
                Problem(
                    "data.image_size",
                    "must be set where pictures differ in size",
                    "set it to the side in pixels that the networks shall see",
                    counts + (", …" if len(self.sizes) > NAMED else ""),
                )
            )
        return found


def _decode_chunk(
    pictures: Pictures, rows: npt.NDArray[np.int64], start: int, into: Decoded
) -> _Faults:
    """Decode `rows` into `into[start : start + len(rows)]`."""
    faults = _Faults()
    block = np.zeros((len(rows), *pictures.shape), dtype=np.uint8)
    for place, row in enumerate(rows):
        try:
            picture = pictures.fitted(int(row))
        except DataError as error:
            faults.corrupt += error.problems
            continue
        faults.sizes[size_text(picture.shape)] += 1
        if picture.shape == pictures.shape:
            block[place] = picture
            into.hashes[start + place] = _hash(picture)
    stop = start + len(rows)
    into.sums[start:stop] = block.sum(axis=(2, 3), dtype=np.int64)
    into.squares[start:stop] = np.square(block, dtype=np.uint16).sum(axis=(2, 3), dtype=np.int64)
    if into.pixels is not None:
        into.pixels[start:stop] = block
    return faults


def _hash(picture: npt.NDArray[np.uint8]) -> int:
    return int.from_bytes(hashlib.blake2b(picture.tobytes(), digest_size=8).digest(), "little")
