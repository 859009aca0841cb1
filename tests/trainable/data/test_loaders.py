from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from trainable.config import DataConfig
from trainable.data.loaders import (
    Batch,
    Loader,
    MappedLoader,
    ResidentLoader,
    StreamedLoader,
    open_loader,
)
from trainable.data.sampling import epoch_order, shards, updates
from trainable.data.store import Split, open_dataset
from trainable.errors import DataError

NoHostSync = Callable[[], AbstractContextManager[None]]
Make = Callable[..., DataConfig]
CPU = torch.device("cpu")


@pytest.fixture
def splits(parquet_set: Make, cache: Path) -> tuple[Split, Split]:
    """The same training samples, kept and streamed."""
    config = parquet_set()
    streamed = config.model_copy(update={"loader": "streamed"})
    return open_dataset(config, cache).train, open_dataset(streamed, cache).train


def orders(samples: int) -> list[np.ndarray]:
    order = [m for u in updates(epoch_order(samples, 0, 1), 4, 1, 1, 0) for m in u.micro_batches]
    return [*order, *shards(samples, 5, 1, 0), np.asarray([], dtype=np.int64)]


def assert_right(loader: Loader, split: Split, device: torch.device = CPU) -> None:
    wanted = orders(len(split))
    batches = list(loader.batches(wanted))
    assert len(batches) == len(wanted)
    for indices, batch in zip(wanted, batches, strict=True):
        tensors = (batch.images, batch.labels, batch.indices)
        assert [t.device.type for t in tensors] == [device.type] * 3
        assert [t.dtype for t in tensors] == [torch.uint8, torch.int64, torch.int64]
        assert np.array_equal(batch.images.cpu().numpy(), split.images(indices))
        assert batch.labels.tolist() == split.labels[indices].tolist()
        assert batch.indices.tolist() == indices.tolist()
        assert batch.first == (indices[0] if len(indices) else -1)


def test_the_loader_follows_from_split_and_device(splits: tuple[Split, Split]) -> None:
    kept, streamed = splits
    assert isinstance(open_loader(kept, CPU, 0), MappedLoader)
    assert isinstance(open_loader(streamed, CPU, 0), StreamedLoader)


def test_kept_pictures_come_in_the_order_asked_for(splits: tuple[Split, Split]) -> None:
    kept, _ = splits
    assert_right(MappedLoader(kept), kept)
    assert_right(ResidentLoader(kept, CPU), kept)
    assert list(ResidentLoader(kept, CPU).batches([])) == []


def test_streamed_pictures_are_the_same_with_any_number_of_workers(
    splits: tuple[Split, Split],
) -> None:
    kept, streamed = splits
    for workers in (0, 1, 2):
        assert_right(StreamedLoader(streamed, CPU, workers), kept)


def test_streaming_draws_no_number_from_torch(splits: tuple[Split, Split]) -> None:
    state = torch.get_rng_state()
    list(open_loader(splits[1], CPU, 1).batches([np.asarray([0, 1])]))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_one_clear_message(
    image_folder: Make, cache: Path, workers: int
) -> None:
    config = image_folder(loader="streamed")
    split = open_dataset(config, cache).train
    broken = Path(config.root or "") / "train" / "bee" / "1.png"
    broken.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"bee/1\.png: must be a readable picture") as caught:
        list(open_loader(split, CPU, workers).batches([np.arange(len(split))]))
    assert len(caught.value.problems) == 1


def test_a_picture_of_another_size_is_named(
    image_folder: Make, cache: Path, make_pictures, encode
) -> None:
    config = image_folder(loader="streamed")
    split = open_dataset(config, cache).train
    odd = Path(config.root or "") / "train" / "ant" / "3.png"
    odd.write_bytes(encode(make_pictures(1, (9, 7))[0]))
    with pytest.raises(DataError, match=r"3\.png: must be 8×8 pixels .*got 9×7; set data\.image"):
        list(open_loader(split, CPU, 0).batches([np.arange(len(split))]))


def first(loader: Loader) -> Batch:
    return next(iter(loader.batches([np.asarray([0, 1])])))


def test_batches_do_not_share_memory_with_the_cache(splits: tuple[Split, Split]) -> None:
    loader = MappedLoader(splits[0])
    before = first(loader).images.clone()
    first(loader).images.zero_()
    assert torch.equal(first(loader).images, before)


@pytest.mark.gpu
def test_cuda_batches_are_the_same_and_nothing_waits(
    splits: tuple[Split, Split], no_host_sync: NoHostSync
) -> None:
    device = torch.device("cuda")
    kept, streamed = splits
    assert isinstance(open_loader(kept, device, 0), ResidentLoader)
    assert_right(open_loader(kept, device, 0), kept, device)
    assert_right(open_loader(streamed, device, 1), kept, device)
    loader = open_loader(kept, device, 0)
    with no_host_sync():
        for _ in loader.batches(orders(len(kept))):
            pass
