"""Swin transformers (Liu et al. 2021) on torchvision's, for pictures of any size and number of channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from trainable.errors import ConfigError, input_error
from trainable.networks.vit import check_patches

CUTS = ("features.1", "features.3", "features.5", "norm")
"""After each stage's attention layers (StableKD, appendix D); patch merging begins the next block.

As in `vit`, the final LayerNorm ends the fourth block, so that the head's block is the pooling and the
linear layer, and the last features compared are of unit scale. A cut at `features.7` in place of `norm`
leaves the norm to the head's block. Features are (batch, height, width, channels).
"""

_DEPTHS = {"t": (2, 2, 6, 2), "s": (2, 2, 18, 2)}
_HEADS = (3, 6, 12, 24)
_WIDTH = 96


class Swin(SwinTransformer):
    """torchvision's SwinTransformer, with its names and initialisation.

    Without stochastic depth, which torchvision's `swin_t` and `swin_s` train with at 0.2 and 0.3: a block that
    leaves out layers at random cannot match the teacher's features, a frozen function of the picture, and what
    regularises the student here is the teacher.
    """

    def __init__(
        self,
        *,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        patch: int,
        window: int,
        classes: int,
        channels: int,
    ) -> None:
        super().__init__(
            patch_size=[patch, patch],
            embed_dim=width,
            depths=list(depths),
            num_heads=list(heads),
            window_size=[window, window],
            stochastic_depth_prob=0.0,
            num_classes=classes,
        )
        if channels != 3:
            self.set_submodule("features.0.0", nn.Conv2d(channels, width, patch, stride=patch))


def build_swin(
    size: str, *, classes: int, channels: int, image_size: tuple[int, int], path: str
) -> Swin:
    """`swin_SIZE`, SIZE `t` or `s`, with fresh weights from torch's global generator.

    `image_size` is height and width in pixels. Patches are 4 × 4, and 2 × 2 under 64 pixels of the shorter
    side. A window is as wide as the last stage's map, which is the paper's 7 at 224 pixels and 12 at 384, but
    at least 4: a smaller one would leave attention next to nothing to mix. At 32 pixels the maps are 16, 8,
    4 and 2 wide, the last padded to one window.
    Raises ConfigError, in the name of the config path `path`, for pictures that are not whole patches.
    """
    if size not in _DEPTHS:
        raise input_error(
            ConfigError, path, "swin_SIZE needs t or s", "use swin_t or swin_s", f"swin_{size}"
        )
    patch = 4 if min(image_size) >= 64 else 2
    check_patches(image_size, patch, path)
    return Swin(
        width=_WIDTH,
        depths=_DEPTHS[size],
        heads=_HEADS,
        patch=patch,
        window=max(4, -(-min(image_size) // (8 * patch))),
        classes=classes,
        channels=channels,
    )
