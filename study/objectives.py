"""What a study seeks, what it bounds, and which of its trials no other betters. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

from trainable import records

ObjectiveName = Literal["accuracy", "latency", "parameters", "training_seconds"]
Values = Mapping[str, float]
"""Objective → value of a trial, as far as it is known."""


@dataclass(frozen=True)
class Objective:
    """A number that a trial is judged by."""

    metric: str
    """The trial's metric that has it."""
    heading: str
    """Name and unit of a column."""
    words: str
    """The same in full."""
    seeks_most: bool = False
    """Whether more of it is better; else less is."""


OBJECTIVES: Mapping[ObjectiveName, Objective] = {
    "accuracy": Objective(
        records.BEST_VAL_ACCURACY, "val %", "validation accuracy in %", seeks_most=True
    ),
    "latency": Objective(records.STUDENT_LATENCY, "latency ms", "latency in ms"),
    "parameters": Objective(records.STUDENT_PARAMETERS, "parameters", "parameters"),
    "training_seconds": Objective(records.TRAIN_SECONDS, "train sec", "seconds of training"),
}

_Key = TypeVar("_Key", bound=Hashable)


def objective(name: str) -> Objective:
    """The objective of a name that a config or a ledger has."""
    return OBJECTIVES[cast(ObjectiveName, name)]


def costs_in(metrics: Mapping[str, float]) -> dict[str, float]:
    """What metrics tell of a trial's objectives; its accuracy is that of its best epoch, and not told by one."""
    return {
        name: metrics[known.metric]
        for name, known in OBJECTIVES.items()
        if name != "accuracy" and known.metric in metrics
    }


def excesses(bounds: Values, values: Values) -> dict[str, float]:
    """How far each bounded value that is known lies beyond its bound, as a share of it; <= 0 keeps to it."""
    shares = {name: values[name] / bound - 1 for name, bound in bounds.items() if name in values}
    return {name: -share if objective(name).seeks_most else share for name, share in shares.items()}


def broken(bounds: Values, values: Values) -> tuple[str, ...]:
    """The constraints that these values break."""
    return tuple(name for name, excess in excesses(bounds, values).items() if excess > 0)


def pareto_front(points: Mapping[_Key, Values], objectives: Sequence[str]) -> tuple[_Key, ...]:
    """The points that no other dominates: none is as good in every objective and better in one.

    Points that are equal in all objectives are on the front together, or none of them is. All must have a
    value for each objective.
    """
    losses = {key: _losses(values, objectives) for key, values in points.items()}
    front: dict[_Key, tuple[float, ...]] = {}
    # In this order whatever dominates a point comes before it, and of those one is on the front.
    for key in sorted(losses, key=lambda key: losses[key]):
        if not any(_dominates(other, losses[key]) for other in front.values()):
            front[key] = losses[key]
    return tuple(key for key in points if key in front)


def _losses(values: Values, objectives: Sequence[str]) -> tuple[float, ...]:
    return tuple(-values[n] if objective(n).seeks_most else values[n] for n in objectives)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
