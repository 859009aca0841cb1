"""Bringing the samples of each batch to the device: kept there, or decoded as they are needed."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainable.data.split import Split
from trainable.errors import DataError

Indices = npt.NDArray[np.int64]
Piece = tuple[Tensor, Tensor]
"""Pictures uint8 (b, C, H, W) and sample indices int64 (b,)."""

_UPLOADED = 4096
"""Pictures copied to the device at a time: bounds the host memory that this takes."""


@dataclass(frozen=True)
class Batch:
    """Some samples on the device."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    indices: Tensor
    """int64 (B,): which samples of the split they are."""
    first: int
    """The first of the indices, known without waiting for the device; −1 in an empty batch."""


class Loader(Protocol):
    """Turns sample indices into batches on the device."""

    def batches(self, index_batches: Sequence[Indices]) -> Iterator[Batch]:
        """One batch for each array of indices, in their order; DataError for a corrupt picture."""
        ...


def open_loader(split: Split, device: torch.device, decode_workers: int) -> Loader:
    """The loader that fits split and device; `decode_workers` processes decode a streamed split."""
    if split.streamed:
        return StreamedLoader(split, device, decode_workers)
    if device.type == "cpu":
        return MappedLoader(split)
    return ResidentLoader(split, device)


class MappedLoader:
    """Batches for the CPU, copied out of the memory map that all processes of the node share."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def batches(self, index_batches: Sequence[Indices]) -> Iterator[Batch]:
        """One batch for each array of indices, in their order."""
        for indices in index_batches:
            images = torch.from_numpy(self._split.images(indices))
            labels = torch.from_numpy(self._split.labels[indices])
            yield Batch(images, labels, torch.from_numpy(np.array(indices)), _first(indices))


class ResidentLoader:
    """Batches gathered on the device, where all pictures of the split are; nothing waits for it."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self._device = device
        self._labels = torch.from_numpy(split.labels.copy()).to(device)
        self._images = torch.empty((len(split), *split.shape), dtype=torch.uint8, device=device)
        for start in range(0, len(split), _UPLOADED):
            indices = np.arange(start, min(start + _UPLOADED, len(split)), dtype=np.int64)
            self._images[start : start + len(indices)] = torch.from_numpy(split.images(indices))

    def batches(self, index_batches: Sequence[Indices]) -> Iterator[Batch]:
        """One batch for each array of indices, in their order; the indices go up in one copy."""
        if not index_batches:
            return
        sizes = [len(indices) for indices in index_batches]
        together = torch.from_numpy(np.concatenate(index_batches))
        parts = _to_device(together, self._device).split(sizes)
        for indices, own in zip(parts, index_batches, strict=True):
            yield Batch(self._images[indices], self._labels[indices], indices, _first(own))


class StreamedLoader:
    """Batches decoded as they are needed, by processes of its own or in this one.

    The processes come from a fork server: forked from this process they could inherit locks that
    CUDA's, Arrow's or Ray's threads hold. They decode ahead and deliver in order; the result does
    not depend on their number.
    """

    def __init__(self, split: Split, device: torch.device, decode_workers: int) -> None:
        self._split = split
        self._device = device
        self._workers = decode_workers
        self._labels = torch.from_numpy(split.labels.copy()).to(device)

    def batches(self, index_batches: Sequence[Indices]) -> Iterator[Batch]:
        """One batch for each array of indices, in their order; DataError for a corrupt picture."""
        loader = DataLoader(
            _Pieces(self._split),
            batch_size=None,
            sampler=cast("Sequence[int]", index_batches),
            num_workers=self._workers,
            multiprocessing_context=_fork_server() if self._workers else None,
            pin_memory=self._device.type == "cuda",
            # The loader draws a seed for its processes: not from the trial's own generator.
            generator=torch.Generator(),
        )
        pieces = cast("Iterator[Piece | DataError]", loader)
        for piece, own in zip(pieces, index_batches, strict=True):
            if isinstance(piece, DataError):
                raise piece
            images, indices = (_to_device(tensor, self._device) for tensor in piece)
            yield Batch(images, self._labels[indices], indices, _first(own))


class _Pieces(Dataset[Piece | DataError]):
    """The pictures of a whole batch as one item of a torch dataset."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __getitem__(self, index: Indices) -> Piece | DataError:
        try:
            images = self._split.images(index)
        except DataError as error:
            return error  # Raised by a worker process, it would be wrapped beyond recognition.
        return torch.from_numpy(images), torch.from_numpy(index.copy())


def _fork_server() -> BaseContext:
    """A fork server that has imported what its processes need, so that they start in ms."""
    mp.set_forkserver_preload(["__main__", __name__, "trainable.data.singly"])
    return mp.get_context("forkserver")


def _first(indices: Indices) -> int:
    return int(indices[0]) if len(indices) else -1


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that the host need not wait for."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
