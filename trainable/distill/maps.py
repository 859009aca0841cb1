"""Maps: features of (channels, height, width) at the cuts, for the methods that compare them at any widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from trainable.errors import ConfigError, Problem, input_error
from trainable.methods import METHODS, MethodName
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, shapes_at_cuts
from trainable.networks.projectors import is_map


@dataclass(frozen=True)
class FeatureShapes:
    """Shapes of both networks' features at the cuts, for one picture."""

    picture: tuple[int, int]
    """Height and width in pixels."""
    cuts: tuple[str, ...]
    student: tuple[tuple[int, ...], ...]
    teacher: tuple[tuple[int, ...], ...]


class Map(NamedTuple):
    """A feature's shape, for one picture."""

    channels: int
    height: int
    width: int


def feature_shapes(
    student: BlockNetwork, teacher: BlockNetwork, pictures: Pictures
) -> FeatureShapes:
    """Of two networks with the same cuts, which keep their state."""
    mine, theirs = shapes_at_cuts(student, teacher, pictures)
    return FeatureShapes(pictures.image_size, student.names[:-1], mine, theirs)


def map_pairs(
    method: MethodName, shapes: FeatureShapes | None, *, equal_sizes: bool
) -> list[tuple[Map, Map]]:
    """The student's and the teacher's map at each cut.

    Raises:
        ConfigError: There are no cuts, features of a network are not maps, or, with `equal_sizes`, heights or
            widths differ: each cut where that is so is named.
    """
    if shapes is None:
        raise ValueError(f"{method} needs the shapes of the features")
    if not shapes.cuts:
        rule = f"{method} compares features at the cuts, and there are none"
        raise input_error(ConfigError, "student.cuts", rule, "name one, or remove it")
    found: list[Problem] = []
    pairs: list[tuple[Map, Map]] = []
    for cut, mine, theirs in zip(shapes.cuts, shapes.student, shapes.teacher, strict=True):
        if not (is_map(mine, shapes.picture) and is_map(theirs, shapes.picture)):
            wanted = "maps of (channels, height, width)"
            remedy = f"choose convolutional networks, or set distill.method to {_for_any_shape()}"
        elif equal_sizes and mine[1:] != theirs[1:]:
            wanted = "maps of equal height and width"
            remedy = "choose cuts where they agree, or distill.method: reviewkd, which resizes"
        else:
            pairs.append((Map(*mine), Map(*theirs)))
            continue
        rule = f"{method} compares {wanted}, and at {cut} the student has {mine} and the teacher {theirs}"
        found.append(Problem("student.cuts", rule, remedy))
    if found:
        raise ConfigError(found)
    return pairs


def _for_any_shape() -> str:
    """The methods that tokens do not trouble; DeiT's are its own."""
    names = [n for n, traits in METHODS.items() if traits.teacher and traits.features != "maps"]
    return ", ".join(name for name in names if name != "deit")
