"""What a student's weights are not: its network, its pictures and its classes, as `config.json` keeps them."""

from __future__ import annotations

from typing import Literal

from trainable.config import BatchNormConfig, Config, HeadConfig
from trainable.networks.blocks import BlockNetwork
from trainable.networks.folding import Named, without_norms
from trainable.networks.norms import with_norms
from trainable.networks.projectors import Widths, projectors
from trainable.networks.zoo import Pictures, build


class Preprocessing(Config):
    """From a picture's file to what the network takes: as in validation."""

    channels: int
    """Grey pictures are repeated, coloured ones turned grey (ITU-R 601 luma)."""
    resize: int | None
    """Pixels of the shorter side (bilinear, antialiased); null takes pictures of `size` as they are."""
    size: tuple[int, int]
    """Height and width in pixels, of the centre that is cropped."""
    pixel_range: tuple[int, int] = (0, 255)
    """Of uint8 pixels, which are divided by the second: in [0, 1] they have `mean` and `std`."""
    mean: tuple[float, ...]
    """Subtracted, one a channel."""
    std: tuple[float, ...]
    """Divided by, one a channel."""


class NetworkRecipe(Config):
    """What a student's network is built from, but for its weights."""

    model: str
    """As `student.model`."""
    head: HeadConfig
    distilled: bool
    """Whether it has DeiT's distillation token, whose logits and the class token's are averaged."""
    cuts: tuple[str, ...]
    """Submodules that end its blocks."""
    group_norm: int | None
    """As `train.batchnorm.group_norm`."""
    batchnorm_eps: float | None
    """As `train.batchnorm.eps`."""
    projectors: Literal["none", "keep", "fold"]
    widths: dict[int, Widths]
    """Of the projectors, by the index of their cut."""
    folded: tuple[Named, ...]
    """Convolutions with a bias that have taken in the BatchNorm beside them, which is an identity here."""


class Recipe(Config):
    """An exported student's `config.json`."""

    format: Literal[1] = 1
    classes: tuple[str, ...]
    """In the order of the logits."""
    preprocessing: Preprocessing
    network: NetworkRecipe
    versions: dict[str, str]
    """Of what wrote it."""


def rebuilt(recipe: Recipe) -> BlockNetwork:
    """The network with fresh weights, in the form that the exported weights fit (`BlockNetwork.whole`)."""
    own, shown = recipe.network, recipe.preprocessing
    pictures = Pictures(len(recipe.classes), shown.channels, shown.size)
    built = build(own.model, pictures, path="network.model", head=own.head, distilled=own.distilled)
    norms = BatchNormConfig(group_norm=own.group_norm, eps=own.batchnorm_eps)
    network = without_norms(with_norms(built.network, norms, workers=1), own.folded)
    student = BlockNetwork(network, own.cuts, "network.cuts", "network.model")
    student.project(projectors(own.widths, folded=own.projectors == "fold"))
    return student.eval()
