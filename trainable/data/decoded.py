"""Decoded splits in the node's cache folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainable.data import cache
from trainable.data.cache import Arrays


@dataclass(frozen=True, eq=False)
class Decoded:
    """A split decoded once: labels, exact sums over the pixels and, where kept, the pixels."""

    labels: npt.NDArray[np.int64]
    """(n,)."""
    sums: npt.NDArray[np.int64]
    """(n, C): Σ of each picture's uint8 values."""
    squares: npt.NDArray[np.int64]
    """(n, C): Σ of their squares."""
    hashes: npt.NDArray[np.uint64]
    """(n,): BLAKE2b of each picture's pixels."""
    shape: tuple[int, int, int]
    """C, H, W."""
    pixels: npt.NDArray[np.uint8] | None
    """(n, C, H, W), read-only where it comes from a file; None for a set that is streamed."""

    def __len__(self) -> int:
        return len(self.labels)


def decoded_path(folder: Path, key: str) -> Path:
    """Where the decoded split of this key lies in the cache folder."""
    return folder / "data" / f"{key}.arrow"


def load(path: Path) -> Decoded | None:
    """The decoded split in a file, memory-mapped; None if it is missing or damaged (and logged)."""
    return cache.load(path, _parsed)


def build(path: Path, make: Callable[[], Decoded]) -> Decoded:
    """The decoded split in a file, made by the first of all processes that ask for it.

    Raises:
        DataError: From `make`, or where the cache folder cannot be written.
    """
    return cache.build(path, _parsed, lambda: _arrays(make()))


def _arrays(decoded: Decoded) -> Arrays:
    columns: dict[str, npt.NDArray[Any]] = {
        "label": decoded.labels,
        "sum": decoded.sums,
        "square": decoded.squares,
        "hash": decoded.hashes,
    }
    if decoded.pixels is not None:
        columns["pixels"] = decoded.pixels.reshape(len(decoded), -1)
    return Arrays(columns, {"shape": ",".join(str(length) for length in decoded.shape)})


def _parsed(arrays: Arrays) -> Decoded:
    channels, height, width = (int(length) for length in arrays.facts["shape"].split(","))
    columns, pixels = arrays.columns, None
    if "pixels" in columns:
        pixels = columns["pixels"].reshape(-1, channels, height, width)
    return Decoded(
        labels=columns["label"],
        sums=columns["sum"],
        squares=columns["square"],
        hashes=columns["hash"],
        shape=(channels, height, width),
        pixels=pixels,
    )
