"""Vision transformers at any depth (Dosovitskiy et al. 2020), in DeiT's widths and with its initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainable.errors import ConfigError, input_error
from trainable.networks.heads import DistilledHead

CUTS = ("group1", "group2", "group3", "norm")
"""The layers in four equal blocks (StableKD, appendix D), named alike at any depth.

The final LayerNorm ends the fourth, so that the head's block is the linear layer alone ("the last block
contains the fully-connected layer"), and the last features compared are of unit scale, as the head reads
them: before the norm they grow with depth, to a length that the head never sees. A cut at `group4` in place
of `norm` leaves the norm to the head's block; one at `pool` compares the class token alone.
Features are (batch, tokens, width).
"""

_WIDTHS = {"t": (192, 3), "s": (384, 6)}
_GROUPS = 4
_STD = 0.02


class VisionTransformer(nn.Module):
    """Patches → tokens → pre-norm transformer layers in four groups → LayerNorm → class token → linear.

    Without dropout and stochastic depth: what is to match a teacher's features is a function of the picture.
    `distilled` adds DeiT's distillation token, and its head with a linear layer for each token.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        depth: int,
        patch: int,
        image_size: tuple[int, int],
        classes: int,
        channels: int,
        distilled: bool = False,
    ) -> None:
        super().__init__()
        height, wide = image_size
        patches = (height // patch) * (wide // patch)
        self.embedding = _Embedding(width, patch, patches, channels, tokens=1 + distilled)
        counts = [depth // _GROUPS + (group < depth % _GROUPS) for group in range(_GROUPS)]
        groups = [nn.Sequential(*(_Layer(width, heads) for _ in range(n))) for n in counts]
        self.group1, self.group2, self.group3, self.group4 = groups
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pool = nn.Identity() if distilled else _ClassToken()
        self.head = DistilledHead(width, classes) if distilled else nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures: (batch, channels, height, width) → (batch, classes)."""
        x = self.group2(self.group1(self.embedding(x)))
        x = self.norm(self.group4(self.group3(x)))
        return self.head(self.pool(x))


class _Embedding(nn.Module):
    """(batch, channels, height, width) → (batch, tokens + patches, width), learned positions added.

    The convolution keeps torch's initialisation, whose scale follows the pixels of a patch: 0.02 at
    16 × 16 × 3, as everywhere else, and four times that at 4 × 4 × 3, so that tokens start at one scale.
    """

    def __init__(self, width: int, patch: int, patches: int, channels: int, tokens: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, patch, stride=patch)
        self.tokens = nn.Parameter(torch.empty(1, tokens, width))
        self.positions = nn.Parameter(torch.empty(1, tokens + patches, width))
        nn.init.trunc_normal_(self.tokens, std=_STD)
        nn.init.trunc_normal_(self.positions, std=_STD)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.projection(x).flatten(2).transpose(1, 2)
        tokens = self.tokens.expand(patches.shape[0], -1, -1)
        return torch.cat((tokens, patches), dim=1) + self.positions


class _Layer(nn.Module):
    """x ← x + attention(norm(x)), then x + mlp(norm(x)), the MLP four times as wide with GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, §3.2): (batch, tokens, width) → the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class _ClassToken(nn.Module):
    """(batch, tokens, width) → (batch, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def build_vit(
    size: str,
    depth: int,
    *,
    classes: int,
    channels: int,
    image_size: tuple[int, int],
    path: str,
    distilled: bool = False,
) -> VisionTransformer:
    """`vit_SIZEDEPTH`, SIZE `t` or `s`, with fresh weights from torch's global generator.

    `image_size` is height and width in pixels. Patches are 16 × 16 from 128 pixels of the shorter side on,
    as for 224; 8 × 8 from 64, and 4 × 4 below, which is 64 patches of a 32 × 32 picture.
    A depth that is no multiple of four makes the earlier blocks larger by one layer.
    Raises ConfigError, in the name of the config path `path`, for fewer than four layers and for pictures
    that are not whole patches.
    """
    if size not in _WIDTHS or depth < _GROUPS:
        raise input_error(
            ConfigError,
            path,
            f"vit_SIZEDEPTH needs t or s and a depth >= {_GROUPS}, a layer for each block",
            "use vit_t8, vit_t16, vit_s8, vit_s16, …",
            f"vit_{size}{depth}",
        )
    patch = 16 if min(image_size) >= 128 else 8 if min(image_size) >= 64 else 4
    check_patches(image_size, patch, path)
    width, heads = _WIDTHS[size]
    return VisionTransformer(
        width=width,
        heads=heads,
        depth=depth,
        patch=patch,
        image_size=image_size,
        classes=classes,
        channels=channels,
        distilled=distilled,
    )


def check_patches(image_size: tuple[int, int], patch: int, path: str) -> None:
    """Raise ConfigError for pictures of which a strip at the border would belong to no patch."""
    if any(side % patch for side in image_size):
        raise input_error(
            ConfigError,
            path,
            f"takes patches of {patch} × {patch} pixels, so a picture's height and width must be multiples of it",
            f"set data.image_size to {-(-min(image_size) // patch) * patch}",
            image_size,
        )
