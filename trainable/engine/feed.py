"""The training pictures of a trial, update by update: which, in what order, augmented and normalized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainable import ranks
from trainable.config import TrialConfig
from trainable.data.augment import Normalizer, augment
from trainable.data.loaders import Batch, open_loader
from trainable.data.sampling import Update, updates
from trainable.data.store import Dataset
from trainable.engine.inputs import Place
from trainable.plan import update_sizes


class Feed:
    """What this rank trains on. Everything in it is a function of (seed, epoch, sample)."""

    def __init__(self, data: Dataset, config: TrialConfig, device: torch.device) -> None:
        self._config, self._device, self._split = config, device, data.train
        sizes = update_sizes(
            len(data.train), config.data.batch_size, config.train.workers, config.data.drop_last
        )
        self.updates_per_epoch = len(sizes)
        self.samples_per_epoch = sum(sizes)
        """On all ranks."""
        self._loader = open_loader(data.train, device, config.data.decode_workers)
        self._normalize = Normalizer(data.mean, data.std, device)

    def plan(self, epoch: int) -> list[Update]:
        """The updates of an epoch, counted from 1, with this rank's share of each."""
        data, train = self._config.data, self._config.train
        return updates(
            len(self._split),
            data.batch_size,
            train.workers,
            train.accumulate,
            ranks.rank(),
            train.seed,
            epoch,
            data.drop_last,
        )

    def batches(self, plan: Sequence[Update]) -> Iterator[Batch]:
        """The micro-batches of some updates, one after the other, as they are stored."""
        return self._loader.batches([m for update in plan for m in update.micro_batches])

    def augmented(self, batch: Batch, epoch: int) -> Tensor:
        """A micro-batch as the networks take it in training, float32 (B, C, H, W)."""
        augmentation = self._config.data.augment
        images = augment(
            batch.images,
            batch.indices,
            seed=self._config.train.seed,
            epoch=epoch,
            crop=augmentation.crop,
            flip=augmentation.flip,
        )
        return self.prepare(images)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) → as the networks take it in evaluation."""
        images = self._normalize(images)
        if self._device.type == "cuda":
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def row_of(self, place: Place) -> int:
        """Row of a sample in the training split as it lies on disk."""
        epoch, number = divmod(place.update, self.updates_per_epoch)
        update = self.plan(epoch + 1)[number]
        return int(self._split.rows[update.micro_batches[place.micro_batch][place.position]])
