"""The classes of a data set: those that networks are trained on, and those that they never see."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainable.errors import DataError, Problem

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]

_PATH = "data.unseen_classes"
_LISTED = 10
"""Classes that a remedy lists; the others are left to an ellipsis."""


@dataclass(frozen=True)
class Classes:
    """Every class of a set by name, in the order of the labels on disk, and which are unseen."""

    names: tuple[str, ...]
    hidden: frozenset[str]

    @classmethod
    def of(cls, names: Sequence[str], unseen: Sequence[str] | None) -> Classes:
        """Those of a set, where `data.unseen_classes` is `unseen`; DataError if it cannot be that."""
        if unseen is not None and (problems := list(_problems(names, unseen))):
            raise DataError(problems)
        return cls(tuple(names), frozenset(unseen or ()))

    @property
    def seen(self) -> tuple[str, ...]:
        """Those that networks are trained on."""
        return tuple(name for name in self.names if name not in self.hidden)

    @property
    def unseen(self) -> tuple[str, ...]:
        """The others; none where `data.unseen_classes` is not set."""
        return tuple(name for name in self.names if name in self.hidden)

    def is_unseen(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Which labels on disk are of unseen classes, (n,)."""
        return self._hides()[labels]

    def renumbered(self, labels: Labels) -> Labels:
        """Labels on disk, (n,), as places among the seen classes or, of unseen ones, among those."""
        hides = self._hides()
        return np.where(hides, np.cumsum(hides), np.cumsum(~hides))[labels] - 1

    def _hides(self) -> npt.NDArray[np.bool_]:
        return np.asarray([name in self.hidden for name in self.names], dtype=np.bool_)


def _problems(names: Sequence[str], unseen: Sequence[str]) -> Iterator[Problem]:
    got = ", ".join(unseen) or "none"
    for name in dict.fromkeys(unseen):
        if name not in names:
            yield Problem(_PATH, "must name classes of the data set", _near(name, names), name)
    if len(set(unseen)) < max(2, len(unseen)):
        remedy = "name two or more, or remove it"
        yield Problem(_PATH, "must name at least 2 classes, each once", remedy, got)
    if len({*names} - {*unseen}) < 2:
        rule = f"must leave at least 2 of the {len(names)} classes to train on"
        yield Problem(_PATH, rule, "name fewer", got)


def _near(name: str, names: Collection[str]) -> str:
    if near := difflib.get_close_matches(name, names, n=1):
        return f"did you mean {near[0]}?"
    more = ", …" if len(names) > _LISTED else ""
    return f"choose from {', '.join([*names][:_LISTED])}{more}"
