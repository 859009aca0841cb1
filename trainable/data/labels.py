"""What can be wrong with the labels of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainable.errors import Problem

NAMED = 5
"""Classes that a message names; the others are counted."""

Labels = npt.NDArray[np.int64]


def range_problems(where: str, labels: Labels, classes: Sequence[str]) -> list[Problem]:
    """Labels outside 0 .. classes − 1; a missing one reads as −1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if not len(wrong):
        return []
    got = f"{labels[wrong[0]]} at row {wrong[0]}"
    return [
        Problem(
            where,
            f"labels must be in 0 .. {len(classes) - 1}, one for each class",
            "correct them, or name every class in data.classes",
            got if len(wrong) == 1 else f"{got} and {len(wrong) - 1:,} more",
        )
    ]


def empty_problems(where: str, labels: Labels, classes: Sequence[str]) -> list[Problem]:
    """Classes without a picture."""
    counts = _counts(labels, len(classes))
    return _class_problem(
        where,
        "every class must have a picture in it",
        "add some, or take the class out of data.classes",
        [name for name, count in zip(classes, counts, strict=True) if count == 0],
    )


def carve_problems(where: str, labels: Labels, classes: Sequence[str]) -> list[Problem]:
    """Classes of one picture, which cannot be in both training and validation."""
    counts = _counts(labels, len(classes))
    return _class_problem(
        where,
        "every class must have 2 pictures, to train and to validate on",
        "add some, or set data.val_fraction: 0",
        [name for name, count in zip(classes, counts, strict=True) if count == 1],
    )


def _counts(labels: Labels, classes: int) -> npt.NDArray[np.int64]:
    valid = labels[(labels >= 0) & (labels < classes)]
    return np.bincount(valid, minlength=classes)


def _class_problem(where: str, rule: str, remedy: str, names: list[str]) -> list[Problem]:
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    listed = ", ".join(names[:NAMED]) + more
    kind = "without any" if rule.endswith("in it") else "with one"
    return [Problem(where, rule, remedy, f"{kind}: {listed}")]
