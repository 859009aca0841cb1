"""Accuracy of the composed student (or any network) on a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainable import ranks
from trainable.data.loaders import Loader
from trainable.data.sampling import shards
from trainable.distill.terms import cross_entropy
from trainable.statistics.batchnorm import BatchStatistics

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Score:
    """Of all ranks' pictures together."""

    accuracy: float
    """In [0, 1]."""
    loss: float
    """Cross-entropy per picture, in nats."""


class Evaluator:
    """Scores networks on one split, always in the same batches."""

    def __init__(
        self,
        loader: Loader,
        samples: int,
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        """`prepare` turns (batch, channels, height, width) uint8 pictures into what networks take."""
        self._loader, self._prepare, self.device = loader, prepare, device
        self._samples = samples
        self._batches = shards(samples, EVALUATION_BATCH, ranks.world_size(), ranks.rank())
        smallest = samples // ranks.world_size() // max(1, len(self._batches))
        self.batches_have_statistics = smallest >= 2
        """Whether every batch of every rank has the two samples that a variance needs."""

    def shortened(self) -> Evaluator:
        """One that scores on a single batch, which takes as much memory."""
        samples = min(self._samples, EVALUATION_BATCH)
        return Evaluator(self._loader, samples, self._prepare, self.device)

    def score(self, network: nn.Module) -> Score:
        """With running statistics; the network is in eval mode afterwards."""
        network.eval()
        return self._score(network, None)

    def score_by_batch_statistics(self, network: nn.Module, statistics: BatchStatistics) -> Score:
        """With BatchNorm using each batch's own statistics; `statistics` then knows the drift."""
        network.eval()
        with statistics.measure():
            return self._score(network, statistics)

    @torch.no_grad()
    def _score(self, network: nn.Module, statistics: BatchStatistics | None) -> Score:
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(self._loader.batches(self._batches), start=1):
            if statistics is not None:
                statistics.next_batch(number)
            logits = network(self._prepare(batch.images))
            correct = (logits.argmax(1) == batch.labels).sum()
            samples = torch.tensor(len(batch.labels), device=self.device)
            totals += torch.stack([correct, cross_entropy(logits, batch.labels), samples])
        correct, loss, samples = ranks.sum_over_ranks(totals).tolist()
        return Score(correct / samples, loss / samples)
