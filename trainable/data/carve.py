"""Holding out a share of each class, or taking one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainable.data.hashing import permutation, stream_key

Rows = npt.NDArray[np.int64]


def carve(labels: npt.NDArray[np.int64], fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Rows kept and rows held out, each ascending: `fraction` of each class, drawn by `seed`.

    A class of two or more keeps at least one picture on either side (a fraction of 0 holds out
    none). Which rows are drawn depends on the class's number and its rows' order alone. Raises
    ValueError for a class of one picture, where `fraction` > 0.
    """
    held_out = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels) if fraction > 0 else ():
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise ValueError(f"class {label} has {len(rows)} picture, too few to hold one out")
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        order = permutation(stream_key("split", seed, int(label)), len(rows))
        held_out[rows[order[:count]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def subset(labels: npt.NDArray[np.int64], rows: Rows, share: float, seed: int) -> Rows:
    """`share` of the given rows of each class, drawn by `seed`; ascending.

    A class keeps round(share·n) of its n rows, and at least one. A smaller share is part of every
    larger one. Which rows are drawn depends on the class's number and its rows' order alone.
    """
    if share == 1:
        return rows
    own, taken = labels[rows], np.zeros(len(rows), dtype=np.bool_)
    for label in np.unique(own):
        places = np.flatnonzero(own == label)
        order = permutation(stream_key("subset", seed, int(label)), len(places))
        taken[places[order[: max(1, round(share * len(places)))]]] = True
    return rows[taken]
