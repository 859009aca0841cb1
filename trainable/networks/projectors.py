"""Projectors: 1×1 layers within the student, where its features are narrower or wider than the teacher's.

At such a cut the student's C_s channels become the teacher's C_t, which are compared and exchanged, and C_s again for
the student's next block (StableKD, §5.3: "insert additional projectors, e.g., the conv 1×1 layer, within the student
network"). Both belong to the student wherever it runs. Nothing stands between them, so that after training their
product, one layer C_s → C_s, can take their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainable.errors import ConfigError, Problem

Shape = tuple[int, ...]


class Widths(NamedTuple):
    """Channels of the two networks' features at a cut."""

    student: int
    teacher: int
    is_map: bool
    """(channels, height, width); otherwise channels come last."""


def is_map(shape: Shape, picture: tuple[int, int]) -> bool:
    """Whether height and width come last: then they are in proportion to the picture's.

    Transformers give (positions, channels), or (height, width, channels) as Swin does.
    """
    if len(shape) != 3:
        return False
    _, height, width = shape
    return abs(height * picture[1] - width * picture[0]) <= max(picture)


def between(mine: Shape, theirs: Shape, picture: tuple[int, int]) -> Widths | None:
    """What a projector changes between features of these shapes; None where channels are not all that differs."""
    maps = is_map(mine, picture), is_map(theirs, picture)
    if all(maps) and mine[1:] == theirs[1:]:
        return Widths(mine[0], theirs[0], is_map=True)
    if not any(maps) and mine[:-1] == theirs[:-1]:
        return Widths(mine[-1], theirs[-1], is_map=False)
    return None


def differing_widths(
    cuts: Sequence[str],
    student: Sequence[Shape],
    teacher: Sequence[Shape],
    picture: tuple[int, int],
) -> dict[int, Widths]:
    """The cuts, by their index, where features of one picture (height, width) differ in channels alone.

    Raises:
        ConfigError: They differ in something else, height or width say; each such cut is named.
    """
    found: dict[int, Widths] = {}
    problems: list[Problem] = []
    for index, (cut, mine, theirs) in enumerate(zip(cuts, student, teacher, strict=True)):
        if mine == theirs:
            continue
        if (widths := between(mine, theirs, picture)) is not None:
            found[index] = widths
        else:
            rule = f"a projector changes channels alone, and at {cut} the student has {mine} and the teacher {theirs}"
            problems.append(Problem("student.cuts", rule, "choose cuts where the rest agrees"))
    if problems:
        raise ConfigError(problems)
    return found


def projectors(widths: Mapping[int, Widths], *, folded: bool) -> nn.ModuleDict:
    """Fresh layers for each cut, by its index as text: `out` and `back`, or `folded` alone; none has a bias.

    `out` is orthogonal and `back` its transpose: a student narrower than its teacher starts as if they were not there.
    """
    made = nn.ModuleDict()
    for index, (student, teacher, is_map) in widths.items():
        if folded:
            made[str(index)] = nn.ModuleDict({"folded": _layer(student, student, is_map)})
            continue
        out, back = _layer(student, teacher, is_map), _layer(teacher, student, is_map)
        nn.init.orthogonal_(out.get_parameter("weight"))
        back.get_parameter("weight").data.copy_(out.get_parameter("weight").transpose(0, 1))
        made[str(index)] = nn.ModuleDict({"out": out, "back": back})
    return made


def widths_of(made: nn.ModuleDict) -> dict[int, Widths]:
    """What `projectors` made these of; of folded ones the teacher's width is the student's own."""
    found: dict[int, Widths] = {}
    for index, layers in made.items():
        first = next(layers.children())
        teacher, student = first.get_parameter("weight").shape[:2]
        found[int(index)] = Widths(student, teacher, isinstance(first, nn.Conv2d))
    return found


@torch.no_grad()
def fold(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A student's weights with each pair's product W_back·W_out, (C_s, C_s), in its place, computed in float64."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.startswith("projectors."):
            found[name] = tensor
        elif name.endswith(".out.weight"):
            back = weights[name.replace(".out.", ".back.")]
            product = back.flatten(1).double() @ tensor.flatten(1).double()
            rest = tensor.shape[2:]
            found[name.replace(".out.", ".folded.")] = product.reshape(*product.shape, *rest).to(
                tensor.dtype
            )
    return found


def _layer(inputs: int, outputs: int, is_map: bool) -> nn.Module:
    if is_map:
        return nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Linear(inputs, outputs, bias=False)
