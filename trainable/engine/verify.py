"""Verification of classes that no network was trained on: do two pictures show the same one?"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from trainable.data.hashing import permutation, stream_key
from trainable.data.loaders import Loader
from trainable.engine.evaluate import EVALUATION_BATCH
from trainable.networks.blocks import BlockNetwork

PICTURES = 4096
"""Most pictures that are compared: 8.4 million pairs."""


def equal_error_rate(scores: Tensor, same: Tensor) -> float:
    """The rate at which false acceptance equals false rejection, in [0, 1].

    A pair is accepted if its score reaches a threshold. False acceptance is the accepted share of
    the different (impostor) pairs, false rejection the rejected share of the same (genuine) ones.
    From one score to the next both are interpolated linearly, and the result is where the two lines
    cross. Equal scores are accepted together: where all are equal, it is 0.5. Nothing but the order
    of the scores matters.

    Args:
        scores: Similarities of pairs, (pairs,).
        same: Whether the two of a pair are of one class, bool (pairs,).

    Returns:
        From whole numbers, so exact to one rounding; NaN where a score is NaN.

    Raises:
        ValueError: There are no same pairs, or no different ones.
    """
    genuine = int(same.sum())
    impostors = len(same) - genuine
    if not genuine or not impostors:
        got = f"{genuine} same and {impostors} different"
        raise ValueError(f"there must be same and different pairs, but got {got}")
    if bool(scores.isnan().any()):
        return math.nan
    ordered, order = scores.sort(descending=True)
    is_last = torch.ones_like(same)  # of its equals
    is_last[:-1] = ordered[1:] != ordered[:-1]
    # Pairs accepted at each threshold; the first threshold is above all scores.
    accepted = F.pad(is_last.nonzero().flatten() + 1, (1, 0))
    right = F.pad(same[order].long().cumsum(0), (1, 0))[accepted]
    wrong = accepted - right
    # (false acceptance − false rejection) · genuine · impostors: below 0 at first, and rising.
    excess = wrong * genuine - (genuine - right) * impostors
    crossing = int((excess < 0).sum())
    (before, after), (below, above) = (
        x[crossing - 1 : crossing + 1].tolist() for x in (wrong, excess)
    )
    return (before * above - after * below) / (impostors * (above - below))


def _drawn(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """All samples in a fixed order that has two of each class first, which make a pair."""
    # Not every n-th: classes that take turns in a set could drop out.
    order = permutation(stream_key("verify"), len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    _, starts, counts = np.unique(labels[order][by_class], return_index=True, return_counts=True)
    place = np.empty(len(labels), dtype=np.int64)
    place[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return order[np.argsort(place >= 2, kind="stable")]


class Verifier:
    """Measures how well networks tell unseen classes apart, always on the same pairs."""

    def __init__(
        self,
        loader: Loader,
        labels: npt.NDArray[np.int64],
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        """Of more than `PICTURES` samples so many are compared: two of each class, and others by a fixed draw.

        `labels` are the samples'. `prepare` turns (batch, channels, height, width) uint8 pictures into what networks
        take.
        """
        chosen = np.sort(_drawn(labels)[:PICTURES])
        starts = range(0, len(chosen), EVALUATION_BATCH)
        self._batches = [chosen[start : start + EVALUATION_BATCH] for start in starts]
        self._loader, self._prepare, self._device = loader, prepare, device

    @torch.no_grad()
    def eer(self, network: BlockNetwork) -> float:
        """Equal error rate of the cosine similarity of embeddings, over all pairs of pictures i < j.

        Every rank compares them all and finds the same. The network is in eval mode afterwards;
        NaN where an embedding is not finite. An embedding of zeros has similarity 0 to all.
        """
        network.eval()
        embeddings: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in self._loader.batches(self._batches):
            embeddings.append(network.embed(self._prepare(batch.images)))
            labels.append(batch.labels)
        # In float64, which train.precision: tf32 does not round.
        directions = F.normalize(torch.cat(embeddings).double(), dim=1)
        classes = torch.cat(labels)
        pairs = torch.ones(len(classes), len(classes), dtype=torch.bool, device=self._device).triu(
            1
        )
        scores = (directions @ directions.T)[pairs]
        return equal_error_rate(scores, (classes[:, None] == classes[None, :])[pairs])
