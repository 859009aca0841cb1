"""Mixup and CutMix against the formulas, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainable.config import AugmentConfig
from trainable.data.mix import Mixer

NoHostSync = Callable[[], AbstractContextManager[None]]
CLASSES = 5


def mixer(seed: int = 0, **alphas: Any) -> Mixer:
    return Mixer(AugmentConfig(**alphas), CLASSES, seed)


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 10, 12, generator=generator)
    return images, torch.arange(count) % CLASSES


def shares(labels: Tensor) -> list[float]:
    """λ of each sample, whose own class is its place in the batch and whose partner's is the one before."""
    return [float(row[i % CLASSES]) for i, row in enumerate(labels)]


def one_hot(label: int) -> np.ndarray:
    return np.eye(CLASSES)[label]


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_pictures_and_labels_are_mixed_by_the_same_share(kind: str, first: int) -> None:
    images, labels = batch()
    mixed, distributions = mixer(**{kind: 1.0})(images, labels, epoch=1, first=first)
    assert distributions.dtype == torch.float32
    assert distributions.shape == (6, CLASSES)
    share = shares(distributions)[1]
    for i in range(6):
        mine, other = images[i].numpy(), images[i - 1].numpy()
        expected = share * one_hot(i % CLASSES) + (1 - share) * one_hot((i - 1) % 6 % CLASSES)
        np.testing.assert_allclose(distributions[i].numpy(), expected, atol=1e-6)
        if kind == "mixup":
            expected = share * mine + (1 - share) * other
            np.testing.assert_allclose(mixed[i].numpy(), expected, atol=1e-6)
        else:
            inside = (mixed[i].numpy() != mine).any(0)
            assert inside.mean() == pytest.approx(1 - share, abs=1e-6)
            assert np.array_equal(mixed[i].numpy(), np.where(inside, other, mine))
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            assert inside.sum() == len(rows) * len(columns), "a rectangle"


def test_what_goes_in_stays_as_it_was() -> None:
    images, labels = batch()
    before = images.clone(), labels.clone()
    mixer(mixup=1.0, cutmix=1.0)(images, labels, epoch=1, first=0)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def first_shares(count: int, **alphas: Any) -> np.ndarray:
    mix, (images, labels) = mixer(**alphas), batch()
    images = images[:, :, :2, :2]
    found = [shares(mix(images, labels, epoch=2, first=i)[1])[1] for i in range(count)]
    return np.asarray(found)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    found = first_shares(2000, mixup=alpha)
    assert found.mean() == pytest.approx(0.5, abs=0.04)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


def test_with_both_each_gets_half_of_the_micro_batches() -> None:
    mix, (images, labels) = mixer(mixup=1.0, cutmix=1.0), batch()
    cut = 0
    for first in range(400):
        mixed, _ = mix(images, labels, epoch=1, first=first)
        cut += bool(((mixed == images) | (mixed == images.roll(1, 0))).all())
    assert 160 < cut < 240  # 4 standard deviations


def test_draws_are_functions_of_seed_epoch_and_first_sample() -> None:
    images, labels = batch()

    def draw(seed: int, epoch: int, first: int) -> tuple[float, ...]:
        mix = mixer(seed, mixup=1.0)
        torch.rand(3)
        return tuple(shares(mix(images, labels, epoch=epoch, first=first)[1]))

    places = [(0, 1, 7), (1, 1, 7), (0, 2, 7), (0, 1, 8)]
    assert len({draw(*place) for place in places}) == 4
    assert draw(0, 1, 7) == draw(0, 1, 7)


def test_draws_no_number_from_torchs_own_generator() -> None:
    state = torch.get_rng_state()
    mixer(mixup=1.0, cutmix=1.0)(*batch(), epoch=1, first=0)
    assert torch.equal(state, torch.get_rng_state())


def test_a_label_that_is_no_class_leaves_a_gap_and_stops_nothing() -> None:
    images, labels = batch()
    labels[3] = CLASSES + 4
    _, distributions = mixer(mixup=1.0)(images, labels, epoch=1, first=0)
    whole = (distributions.sum(1) - 1).abs() < 1e-6
    assert whole.tolist() == [True, True, True, False, False, True]


@pytest.mark.gpu
def test_cuda_mixes_alike_without_waiting(no_host_sync: NoHostSync) -> None:
    images, labels = batch()
    mix = mixer(mixup=0.8, cutmix=1.0)
    expected = [mix(images, labels, epoch=1, first=first) for first in range(8)]
    images, labels = images.cuda(), labels.cuda()
    with no_host_sync():
        found = [mix(images, labels, epoch=1, first=first) for first in range(8)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[0].cpu(), theirs[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(mine[1].cpu(), theirs[1], atol=1e-6, rtol=0)
