from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch

from trainable.data.augment import Normalizer, Viewer, Views
from trainable.data.augment import augmentation_key as key_of
from trainable.data.hashing import stream_key

NoHostSync = Callable[[], AbstractContextManager[None]]
MASK = 2**64 - 1


def word(key: int, index: int) -> int:
    """SplitMix64's output number `index`, written out once more in plain integers."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference(image: np.ndarray, bits: int, crop: int, flip: bool) -> np.ndarray:
    """One picture, step by step: pad, cut out, mirror."""
    _, height, width = image.shape
    top = ((bits >> 40 & 0xFFFFFF) * (2 * crop + 1)) >> 24
    left = ((bits >> 16 & 0xFFFFFF) * (2 * crop + 1)) >> 24
    padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)))
    result = padded[:, top : top + height, left : left + width]
    return result[:, :, ::-1] if flip and bits & 1 else result


def augment(
    images: torch.Tensor, indices: torch.Tensor, key: int, *, crop: int, flip: bool
) -> torch.Tensor:
    """Each picture in the view that is drawn for it."""
    return shown(Views(crop, flip), images, Views(crop, flip).drawn(indices, key))


def shown(views: Views, images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[-2:]
    return Viewer(views, (height, width), images.device)(images, numbers)


def batch(count: int, shape: tuple[int, int, int] = (3, 6, 8)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("shape", [(3, 6, 8), (1, 5, 5)])
@pytest.mark.parametrize(("crop", "flip"), [(2, True), (3, False), (0, True), (0, False)])
def test_is_the_same_as_one_picture_at_a_time(shape, crop: int, flip: bool) -> None:
    images, indices = batch(40, shape), torch.arange(40) * 1_000_003
    found = augment(images, indices, key_of(5, 2), crop=crop, flip=flip)
    assert found.dtype == torch.uint8
    key = stream_key("augment", 5, 2)
    for image, index, result in zip(images.numpy(), indices.tolist(), found.numpy(), strict=True):
        assert np.array_equal(result, reference(image, word(key, index), crop, flip))


@pytest.mark.parametrize(("crop", "flip"), [(2, True), (1, False), (0, True), (0, False)])
def test_each_view_is_drawn_and_no_two_are_the_same(crop: int, flip: bool) -> None:
    images, views = batch(1), Views(crop, flip)
    drawn = views.drawn(torch.arange(400), key_of(5, 2))
    assert torch.equal(drawn.unique(), torch.arange(len(views)))
    one = images.expand(len(views), -1, -1, -1)
    every = shown(views, one, torch.arange(len(views)))
    assert len(every.flatten(1).unique(dim=0)) == len(views) == (2 * crop + 1) ** 2 * (1 + flip)


def test_does_not_depend_on_the_rest_of_the_batch() -> None:
    images, indices = batch(30), torch.arange(100, 130)
    whole = augment(images, indices, key_of(1, 1), crop=2, flip=True)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    for part in order.split([1, 12, 17]):
        alone = augment(images[part], indices[part], key_of(1, 1), crop=2, flip=True)
        assert torch.equal(alone, whole[part])


def test_draws_no_number_from_torch() -> None:
    state = torch.get_rng_state()
    augment(batch(4), torch.arange(4), key_of(1, 1), crop=2, flip=True)
    assert torch.equal(state, torch.get_rng_state())


def test_an_empty_batch_stays_empty() -> None:
    found = augment(batch(0), torch.arange(0), key_of(1, 1), crop=2, flip=True)
    assert found.shape == (0, 3, 6, 8)


def offsets(count: int, seed: int, epoch: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the centre pixel of a picture of one white pixel went, from 0 .. 2·crop."""
    side = 2 * crop + 1
    images = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    images[:, :, crop, crop] = 255
    moved = augment(images, torch.arange(count), key_of(seed, epoch), crop=crop, flip=False)
    place = moved.flatten(1).int().argmax(1)
    return place // side, place % side


def test_offsets_are_uniform_and_independent() -> None:
    down, right = offsets(20_250, seed=3, epoch=9, crop=4)
    counts = torch.bincount(down * 9 + right, minlength=81).double()
    assert ((counts - 250) ** 2 / 250).sum() < 130  # 80 degrees of freedom; p ≈ 0.0004


def test_half_are_mirrored_independently_of_seed_and_epoch() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(4000, 1, 1, 2).contiguous()
    flipped = torch.stack(
        [
            augment(images, torch.arange(4000), key_of(seed, epoch), crop=0, flip=True)[:, 0, 0, 0]
            for seed, epoch in [(0, 1), (0, 2), (1, 1), (1, 0)]
        ]
    ).bool()
    assert torch.all((flipped.double().mean(1) - 0.5).abs() < 0.03)
    correlation = torch.corrcoef(flipped.double()) - torch.eye(4)
    assert correlation.abs().max() < 0.06


def test_normalizes_as_the_formula_says() -> None:
    images, mean, std = batch(3), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    expected = (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    for found in (Normalizer(mean.tolist(), std.tolist(), torch.device("cpu"))(images),):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-6)


@pytest.mark.gpu
def test_cuda_gives_the_bits_of_the_cpu_without_waiting(no_host_sync: NoHostSync) -> None:
    images, indices = batch(64, (3, 32, 32)), torch.arange(64) * 77_777
    expected = augment(images, indices, key_of(5, 2), crop=4, flip=True)
    images, indices = images.cuda(), indices.cuda()
    normalizer = Normalizer([0.5] * 3, [0.2] * 3, torch.device("cuda"))
    key = key_of(5, 2)
    with no_host_sync():
        found = augment(images, indices, key, crop=4, flip=True)
        normalizer(found)
    assert torch.equal(found.cpu(), expected)
