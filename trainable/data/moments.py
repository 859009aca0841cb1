"""Mean and standard deviation of pixels, from exact sums."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from trainable.data.faults import data_error

Sums = npt.NDArray[np.int64]


def moments(sums: Sums, squares: Sums, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation a channel of pixels / 255, over all pictures.

    The sums are integers, so that neither order nor device nor thread count changes a bit.

    Args:
        sums: Σ of each picture's uint8 values, (n, C).
        squares: Σ of their squares, (n, C).
        pixels: Pixels a picture, H·W.

    Raises:
        DataError: A channel has the same value everywhere.
    """
    count = len(sums) * pixels
    means: list[float] = []
    deviations: list[float] = []
    for channel in range(sums.shape[1]):
        total, square = int(sums[:, channel].sum()), int(squares[:, channel].sum())
        variance = count * square - total * total
        if variance == 0:
            raise data_error(
                "data.std",
                f"channel {channel} must vary over the training pictures",
                "check the pictures, or set data.mean and data.std",
                f"{total // max(count, 1)} in every pixel",
            )
        means.append(total / (255 * count))
        deviations.append(math.sqrt(variance) / (255 * count))
    return tuple(means), tuple(deviations)
