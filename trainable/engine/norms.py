"""When the student's running statistics change, and what they are when it is evaluated and kept."""

from __future__ import annotations

from collections.abc import Sequence

from trainable import ranks
from trainable.config import TrialConfig
from trainable.engine.feed import Feed
from trainable.networks.blocks import BlockNetwork
from trainable.networks.norms import freeze_batchnorm
from trainable.plan import Stage
from trainable.statistics.batchnorm import Recalibration, batchnorm_layers


class Norms:
    """The policies of `train.batchnorm` over a trial's epochs."""

    def __init__(
        self, config: TrialConfig, stages: Sequence[Stage], student: BlockNetwork, feed: Feed
    ) -> None:
        self._config, self._student, self._feed = config.train.batchnorm, student, feed
        self._last_epochs = {stage.last_epoch for stage in stages}

    def enter(self, epoch: int) -> None:
        """Begin an epoch with a student in training mode: freeze its statistics if that is due."""
        if self.is_frozen(epoch):
            freeze_batchnorm(self._student)

    def settle(self, epoch: int) -> None:
        """End an epoch's training: bring the running statistics to what is evaluated and kept."""
        if self.is_frozen(epoch):
            return  # all ranks have had the same since the last epoch that changed them
        if self._config.recalibrate and self._is_due(epoch):
            self._recalibrate(epoch)
        # Without SyncBatchNorm each rank has seen other pictures: what is evaluated and kept is their mean.
        layers = batchnorm_layers(self._student).values()
        ranks.average_over_ranks(buffer for layer in layers for buffer in layer.buffers())

    def is_frozen(self, epoch: int) -> bool:
        """Whether an epoch's training leaves the statistics as they are."""
        after = self._config.freeze_after
        return after is not None and epoch > after

    def _is_due(self, epoch: int) -> bool:
        at = self._config.recalibrate_at
        return at == "epoch" or epoch in {*self._last_epochs, self._config.freeze_after}

    def _recalibrate(self, epoch: int) -> None:
        recalibration = Recalibration(self._student)
        plan = self._feed.plan_of_all(epoch)[: self._config.recalibrate]
        batches = self._feed.batches(plan, epoch)
        with recalibration.measure():
            for number, batch in enumerate(batches, start=1):
                recalibration.next_batch(number)
                images, _ = self._feed.augmented(batch)
                self._student(images)
