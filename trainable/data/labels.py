"""What can be wrong with the labels of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainable.data.classes import Classes, Labels
from trainable.errors import Problem

NULL_LABEL = -1
"""What stands for a label that is missing: no class has it."""
NAMED = 5
"""Classes that a message names; the others are counted."""


def label_problems(
    where: str, labels: Labels, classes: Classes, *, carves: bool = False
) -> list[Problem]:
    """All that is wrong with a split's labels; `carves` is whether some are held out of it.

    Labels must be in range, every class must have a picture (two, where one is held out) and every
    unseen one two.
    """
    counts = _counts(labels, classes)
    seen = {name: counts[name] for name in classes.seen}
    found = range_problems(where, labels, classes)
    if len(classes.seen) < 2:
        rule = "there must be 2 classes or more to tell apart"
        remedy = "name them all in data.classes, or give the folder whose subfolders they are"
        found.append(Problem(where, rule, remedy, ", ".join(classes.seen) or "none"))
    found += _class_problem(
        where,
        "every class must have a picture in it",
        "add some, or remove the class from both splits and, if it is named there, from data.classes; "
        "labels that are numbers leave none out",
        "without any",
        [name for name, count in seen.items() if count == 0],
    )
    if carves:
        found += _class_problem(
            where,
            "every class must have 2 pictures, to train and to validate on",
            "add some, or set data.val_fraction: 0",
            "with one",
            [name for name, count in seen.items() if count == 1],
        )
    return found + _class_problem(
        where,
        "every unseen class must have 2 pictures in it, to make a pair",
        "add some, or take the class out of data.unseen_classes",
        "with fewer",
        [name for name in classes.unseen if counts[name] < 2],
    )


def range_problems(where: str, labels: Labels, classes: Classes) -> list[Problem]:
    """Labels outside 0 .. classes − 1; a missing one reads as −1."""
    count = len(classes.names)
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if not len(wrong):
        return []
    first = labels[wrong[0]]
    got = f"{first}{' or no label' if first == NULL_LABEL else ''} at row {wrong[0]}"
    return [
        Problem(
            where,
            f"labels must be in 0 .. {count - 1}, one for each class",
            "correct them, or name every class in data.classes",
            got if len(wrong) == 1 else f"{got} and {len(wrong) - 1:,} more",
        )
    ]


def _counts(labels: Labels, classes: Classes) -> dict[str, int]:
    valid = labels[(labels >= 0) & (labels < len(classes.names))]
    counts = np.bincount(valid, minlength=len(classes.names)).tolist()
    return dict(zip(classes.names, counts, strict=True))


def _class_problem(
    where: str, rule: str, remedy: str, kind: str, names: Sequence[str]
) -> list[Problem]:
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [Problem(where, rule, remedy, f"{kind}: {', '.join(names[:NAMED])}{more}")]
