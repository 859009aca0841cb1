"""The training pictures of a trial, update by update: which, in what order, augmented and normalized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainable import ranks
from trainable.config import TrialConfig
from trainable.data.augment import Normalizer, Viewer, Views, augmentation_key
from trainable.data.faults import data_error
from trainable.data.loaders import Batch, Loader, open_loader
from trainable.data.mix import Mixer
from trainable.data.sampling import Indices, Update, balanced_order, epoch_order, updates
from trainable.data.singly import RandomReader
from trainable.data.store import Dataset
from trainable.engine.inputs import Place
from trainable.errors import DataError
from trainable.plan import update_sizes


class Feed:
    """What this rank trains on. Everything in it is a function of (seed, epoch, sample)."""

    def __init__(self, data: Dataset, config: TrialConfig, device: torch.device) -> None:
        self._config, self._device, self._split = config, device, data.train
        self._mean = data.mean
        self._views = Views(config.data.augment.crop, config.data.augment.flip)
        sizes = update_sizes(
            len(data.train), config.data.batch_size, config.train.workers, config.data.drop_last
        )
        self.updates_per_epoch = len(sizes)
        self.samples_per_epoch = sum(sizes)
        """On all ranks."""
        self._loader = open_loader(data.train, device, config.data.decode_workers)
        self._normalize = Normalizer(data.mean, data.std, device)
        self._show = Viewer(self._views, data.train.shape[1:], device)
        self._epoch = 0
        self._drawn = torch.zeros(len(data.train), dtype=torch.int64, device=device)
        """The view of each picture in this epoch: drawn for all at once, since a few numbers take as many kernels."""
        self._mixer = None
        if config.data.augment.mixes:
            self._mixer = Mixer(config.data.augment, len(data.classes), config.train.seed)

    def plan(self, epoch: int) -> list[Update]:
        """The updates of an epoch, counted from 1, with this rank's share of each."""
        if self._config.data.sampling == "shuffled":
            return self.plan_of_all(epoch)
        order = balanced_order(self._split.labels, self._config.train.seed, epoch)
        return self._shared_out(order)

    def plan_of_all(self, epoch: int) -> list[Update]:
        """As `plan`, of every picture once, whatever `data.sampling`: what is evaluated has such a mix."""
        return self._shared_out(epoch_order(len(self._split), self._config.train.seed, epoch))

    def batches(self, plan: Sequence[Update], epoch: int) -> Iterator[Batch]:
        """The micro-batches of some updates of an epoch, one after the other, before `augmented`."""
        return self._loader_of(epoch).batches([m for update in plan for m in update.micro_batches])

    def enter(self, epoch: int) -> None:
        """From now on `augmented` gives what this epoch has; what is drawn for it stays where it lies on the device."""
        self._epoch = epoch
        every = torch.arange(len(self._drawn), device=self._device)
        key = augmentation_key(self._config.train.seed, epoch)
        self._drawn.copy_(self._views.drawn(every, key))

    @property
    def rows(self) -> int:
        """Views of all pictures (`row`), where `data.augment` makes a fixed set of them."""
        return len(self._split) * len(self._views)

    def row(self, batch: Batch) -> Tensor:
        """The number of the view that `augmented` gives of each picture of a micro-batch, int64 (B,).

        Views are counted picture by picture: from 0, the first picture's first.
        """
        if len(self._views) == 1:
            return batch.indices
        return batch.indices * len(self._views) + self._drawn[batch.indices]

    def views(self, parts: Sequence[Indices]) -> Iterator[Tensor]:
        """Views by their numbers (`row`), as the networks take them: one micro-batch for each array."""
        batches = self._loader.batches([part // len(self._views) for part in parts])
        for part, batch in zip(parts, batches, strict=True):
            numbers = torch.from_numpy(part % len(self._views)).to(self._device)
            yield self.prepare(self._show(batch.images, numbers))

    def augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A micro-batch as the networks take it in training: float32 (B, C, H, W), and its labels.

        Those are int64 (B,), or float32 (B, classes) distributions where pictures are mixed.
        """
        images, labels = batch.images, batch.labels
        if len(self._views) > 1:
            images = self._show(images, self._drawn[batch.indices])
        images = self._normalize(images)
        if self._mixer is not None:
            images, labels = self._mixer(images, labels, epoch=self._epoch, first=batch.first)
        return self._laid_out(images), labels

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) → as the networks take it in evaluation."""
        return self._laid_out(self._normalize(images))

    def fault_at(self, place: Place | None) -> DataError:
        """Names the picture that was not finite, or whose label no class has, if this rank (or another) had one."""
        row = -1 if place is None else self.row_of(place)
        row = ranks.max_number_over_ranks(row, self._device)
        data = self._config.data
        return data_error(
            f"{data.root or data.source} (train)",
            "pictures must be finite after augmentation, and labels those of a class",
            "check this row, data.mean and data.std; the update was skipped",
            f"row {row}",
        )

    def row_of(self, place: Place) -> int:
        """Row of a sample in the training split as it lies on disk."""
        epoch, number = divmod(place.update, self.updates_per_epoch)
        update = self.plan(epoch + 1)[number]
        return int(self._split.rows[update.micro_batches[place.micro_batch][place.position]])

    def _shared_out(self, order: Indices) -> list[Update]:
        data, train = self._config.data, self._config.train
        return updates(
            order, data.batch_size, train.workers, train.accumulate, ranks.rank(), data.drop_last
        )

    def _loader_of(self, epoch: int) -> Loader:
        """The loader; where single pictures are changed, one that reads them as this epoch has them."""
        data = self._config.data
        if not data.augment.changes_single_pictures:
            return self._loader
        size, seed = self._split.shape[1:], self._config.train.seed
        reader = RandomReader(data.augment, size, self._mean, seed=seed, epoch=epoch)
        return open_loader(replace(self._split, reader=reader), self._device, data.decode_workers)

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last)
