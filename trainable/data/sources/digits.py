"""scikit-learn's digits: 1,797 grey pictures of 8×8, part of the library."""

from __future__ import annotations

import hashlib
from functools import cache as cached
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from trainable.config import DataConfig
from trainable.data.carve import carve
from trainable.data.sources.base import ArraySplit, Labels, SplitName, rename_classes

TEST_FRACTION = 0.2
TEST_SEED = 0
"""The set has no test split of its own: this share of each class, drawn with this seed, is ours."""


@cached
def _load() -> tuple[npt.NDArray[np.uint8], Labels]:
    """Pictures (1797, 8, 8, 1), their values 0 .. 16 scaled to 0 .. 255, and labels (1797,)."""
    bunch = cast("Any", load_digits())
    pixels = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)
    return pixels[:, :, :, None], np.asarray(bunch.target, dtype=np.int64)


class DigitsSource:
    """The digits, with a fixed stratified fifth of them as test split."""

    def __init__(self, config: DataConfig, cache: Path | None = None) -> None:
        del cache  # Hashing them takes less than remembering the hash.
        self.classes = rename_classes([str(digit) for digit in range(10)], config.classes)

    def split(self, name: SplitName) -> ArraySplit:
        """The pictures of a split, in scikit-learn's order."""
        pixels, labels = _load()
        rows = carve(labels, TEST_FRACTION, TEST_SEED)[name == "test"]
        return ArraySplit(labels[rows], pixels[rows], f"digits {name}")

    def fingerprint(self, name: SplitName) -> str:
        """BLAKE2b of the split's labels and pixels."""
        split = self.split(name)
        digest = hashlib.blake2b(split.labels.tobytes(), digest_size=16)
        digest.update(split.pixels.tobytes())
        return digest.hexdigest()
