"""Random changes of single pictures, against torchvision's own transforms of one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from trainable.config import AugmentConfig, DataConfig
from trainable.data.hashing import stream_key
from trainable.data.loaders import StreamedLoader
from trainable.data.pictures import Pictures
from trainable.data.singly import RandomReader
from trainable.data.sources import open_source
from trainable.data.split import Split
from trainable.data.store import open_dataset
from trainable.errors import DataError

Make = Callable[..., DataConfig]
CPU = torch.device("cpu")
MEAN = (0.5, 0.25, 0.75)
ALL: dict[str, Any] = {"resized_crop": [0.1, 1.0], "rand_augment": {}, "erase": 0.5}


def reader(settings: dict[str, Any], seed: int = 3, epoch: int = 2, size: int = 8) -> RandomReader:
    config = AugmentConfig.model_validate(settings)
    return RandomReader(config, (size, size), MEAN, seed=seed, epoch=epoch)


def opened(config: DataConfig, cache: Path) -> Pictures:
    raw = open_source(config, cache).split("train")
    return Pictures.of(raw, config.channels, config.image_size)


@pytest.fixture
def large(image_folder: Make, cache: Path) -> Pictures:
    """Eight pictures of 30×40, seen by the networks as 8×8."""
    return opened(image_folder(size=(30, 40), image_size=8), cache)


def plain(picture: np.ndarray, transform: Callable[[Any], Any], row: int) -> np.ndarray:
    """(H, W, C) → (C, H, W) by a torchvision transform, seeded as for this row."""
    torch.manual_seed(stream_key("picture", 3, 2, row))
    return np.asarray(transform(Image.fromarray(picture))).transpose(2, 0, 1)


def test_crops_the_whole_picture_as_torchvision_does(large: Pictures) -> None:
    crop = v2.RandomResizedCrop(8, (0.1, 0.9), interpolation=InterpolationMode.BILINEAR)
    read = reader({"resized_crop": [0.1, 0.9]})
    for row in range(8):
        found = read(large, row)
        assert (found.shape, found.dtype) == ((3, 8, 8), np.uint8)
        assert np.array_equal(found, plain(large.raw.image(row), crop, row))


def test_applies_torchvisions_rand_augment(large: Pictures) -> None:
    read = reader({"rand_augment": {"operations": 3, "magnitude": 12}})
    randomly = v2.RandAugment(3, 12, interpolation=InterpolationMode.BILINEAR)
    for row in range(8):
        centre = large.read(row).transpose(1, 2, 0)
        assert np.array_equal(read(large, row), plain(np.ascontiguousarray(centre), randomly, row))


def test_erases_rectangles_to_the_mean_colour(large: Pictures) -> None:
    read = reader({"erase": 1.0})
    for row in range(8):
        changed = (read(large, row) != large.read(row)).any(0)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        colour = read(large, row)[:, *box]
        assert np.array_equal(colour, np.broadcast_to([[[128]], [[64]], [[191]]], colour.shape))
        assert changed.sum() <= 0.33 * 64 + 8, "at most a third of the area, up to rounding"


def test_erases_as_often_as_it_is_told(large: Pictures) -> None:
    often = [
        not np.array_equal(reader({"erase": 0.3}, epoch=epoch)(large, row), large.read(row))
        for row in range(8)
        for epoch in range(1, 51)
    ]
    assert 0.22 < np.mean(often) < 0.38  # 400 draws; 3.5 standard deviations


def test_draws_are_functions_of_seed_epoch_and_row(large: Pictures) -> None:
    read = reader(ALL)
    forwards = [read(large, row) for row in range(8)]
    backwards = [reader(ALL)(large, row) for row in reversed(range(8))]
    assert all(map(np.array_equal, forwards, reversed(backwards)))
    for other in (reader(ALL, seed=4), reader(ALL, epoch=3)):
        assert not any(np.array_equal(other(large, row), forwards[row]) for row in range(8))


def test_draws_no_number_from_torchs_own_generator(large: Pictures) -> None:
    state = torch.get_rng_state()
    reader(ALL)(large, 0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("channels", "stored"), [(1, 3), (3, 1), (1, 1)])
def test_pictures_have_the_channels_of_the_networks(
    parquet_set: Make, make_pictures, encode, cache: Path, channels: int, stored: int
) -> None:
    pixels = make_pictures(4, (12, 10))
    images = [encode(p if stored == 3 else p[:, :, 0]) for p in pixels]
    pictures = opened(parquet_set((images, [0, 1, 2, 0]), channels=channels, image_size=8), cache)
    config = AugmentConfig.model_validate(ALL)
    read = RandomReader(config, (8, 8), MEAN[:channels], seed=0, epoch=1)
    assert {read(pictures, row).shape for row in range(4)} == {(channels, 8, 8)}
    grey = RandomReader(
        AugmentConfig(resized_crop=(0.2, 1.0)), (8, 8), MEAN[:channels], seed=0, epoch=1
    )
    assert len(np.unique(grey(pictures, 0), axis=0)) == 1


def test_a_set_whose_pictures_change_one_by_one_is_streamed(parquet_set: Make, cache: Path) -> None:
    config = parquet_set(augment=AugmentConfig(erase=0.1))
    open_dataset(parquet_set(), cache)  # decoded and cached, which this one does not take
    data = open_dataset(config, cache)
    assert data.train.streamed
    assert data.fingerprint == open_dataset(parquet_set(), cache).fingerprint


def training_split(config: DataConfig, cache: Path, epoch: int = 1) -> Split:
    split = open_dataset(config, cache).train
    return dataclasses.replace(split, reader=reader(ALL, epoch=epoch))


def test_batches_are_the_same_with_any_number_of_processes(image_folder: Make, cache: Path) -> None:
    split = training_split(image_folder(size=(20, 16), image_size=8, loader="streamed"), cache)
    wanted = [np.asarray([3, 0]), np.asarray([1, 2])]
    by_workers = [
        torch.cat([batch.images for batch in StreamedLoader(split, CPU, workers).batches(wanted)])
        for workers in (0, 1, 2)
    ]
    resumed = list(StreamedLoader(split, CPU, 0).batches(wanted[1:]))
    assert torch.equal(by_workers[0], by_workers[1])
    assert torch.equal(by_workers[0], by_workers[2])
    assert torch.equal(by_workers[0][2:], resumed[0].images)
    evaluated = dataclasses.replace(split, reader=Pictures.read).images(wanted[1])
    assert not np.array_equal(resumed[0].images.numpy(), evaluated)


def test_a_corrupt_picture_is_named(image_folder: Make, cache: Path) -> None:
    config = image_folder(loader="streamed", image_size=8)
    split = training_split(config, cache)
    (Path(config.root or "") / "train" / "bee" / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"bee/1\.png: must be a readable picture"):
        list(StreamedLoader(split, CPU, 0).batches([np.arange(len(split))]))
