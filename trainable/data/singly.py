"""Random changes of single pictures as they are decoded, by torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision.transforms import InterpolationMode, v2

from trainable.config import AugmentConfig
from trainable.data.hashing import stream_key
from trainable.data.pictures import Picture, Pictures
from trainable.data.seeding import drawing_from

_ASPECT = (3 / 4, 4 / 3)
"""Width over height of a random crop, before it is resized (Szegedy et al. 2015)."""


class RandomReader:
    """Reads training pictures with a random crop, RandAugment and random erasing, as configured.

    Every draw is a function of (seed, epoch, row): neither the other pictures nor the process that
    decodes this one change a bit of it. A `split.Reader`.
    """

    def __init__(
        self,
        config: AugmentConfig,
        image_size: tuple[int, int],
        mean: Sequence[float],
        *,
        seed: int,
        epoch: int,
    ) -> None:
        """`image_size` is what comes out, (H, W); `mean`, of pixels in [0, 1], what is erased to."""
        self._crops = config.resized_crop is not None
        self._transform = v2.Compose(_transforms(config, image_size, mean))
        self._seed, self._epoch = seed, epoch

    def __call__(self, pictures: Pictures, row: int) -> Picture:
        """One picture, uint8 (C, H, W); DataError if it is corrupt."""
        picture = pictures.whole(row) if self._crops else pictures.read(row).transpose(1, 2, 0)
        with drawing_from(stream_key("picture", self._seed, self._epoch, row)):
            return self._transform(picture).numpy()


def _transforms(
    config: AugmentConfig, image_size: tuple[int, int], mean: Sequence[float]
) -> list[v2.Transform]:
    """On Pillow's pictures, where torchvision is fastest on single ones of 8 bits."""
    bilinear = InterpolationMode.BILINEAR
    found: list[v2.Transform] = [v2.ToPILImage()]
    if config.resized_crop is not None:
        found.append(
            v2.RandomResizedCrop(image_size, config.resized_crop, _ASPECT, interpolation=bilinear)
        )
    if (rand_augment := config.rand_augment) is not None:
        operations, magnitude = rand_augment.operations, rand_augment.magnitude
        found.append(v2.RandAugment(operations, magnitude, interpolation=bilinear))
    found.append(v2.PILToTensor())
    if config.erase > 0:
        colour: Any = [round(255 * value) for value in mean]  # annotated as one number there
        found.append(v2.RandomErasing(config.erase, value=colour))
    return found
