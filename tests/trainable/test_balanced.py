"""`data.sampling: balanced` in a trial: what it trains on, and what BatchNorm is recalibrated on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainable.recorded_runs import IMBALANCED, Run, imbalanced_digits
from tests.trainable.trials import CPU, numbers, train
from trainable.config import TrialConfig
from trainable.data.loaders import Batch
from trainable.data.sampling import Update
from trainable.data.store import Dataset, open_dataset
from trainable.engine import loop
from trainable.engine.feed import Feed
from trainable.engine.inputs import Place


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imbalanced_digits(tmp_path_factory.mktemp("pictures"))


def config(root: Path, train: dict[str, Any] | None = None, **data: Any) -> TrialConfig:
    return Run({"data": {**IMBALANCED, "root": str(root), **data}, "train": train or {}}).config


def opened(config: TrialConfig) -> tuple[Dataset, Feed]:
    data = open_dataset(config.data)
    return data, Feed(data, config, CPU)


def drawn(plan: Sequence[Update]) -> np.ndarray:
    return np.concatenate([cell for update in plan for cell in update.micro_batches])


def test_an_epoch_has_the_same_updates_and_every_class_equally_often(root: Path) -> None:
    data, feed = opened(config(root))
    _, shuffled = opened(config(root, sampling="shuffled"))
    plan, other = feed.plan(1), shuffled.plan(1)
    assert [update.size for update in plan] == [update.size for update in other]
    assert feed.updates_per_epoch == shuffled.updates_per_epoch == len(plan)
    counts = Counter(data.train.labels[drawn(plan)].tolist())
    assert max(counts.values()) - min(counts.values()) <= 1
    natural = Counter(data.train.labels[drawn(other)].tolist())
    assert max(natural.values()) > 8 * min(natural.values())


def test_the_pictures_of_an_update_are_those_of_its_plan(root: Path) -> None:
    data, feed = opened(config(root, batch_size=32, train={"accumulate": 2}))
    plan = feed.plan(2)
    batches = list(feed.batches(plan, 2))
    cells = [cell for update in plan for cell in update.micro_batches]
    for batch, cell in zip(batches, cells, strict=True):
        assert batch.labels.tolist() == data.train.labels[cell].tolist()
        assert np.array_equal(batch.images.numpy(), data.train.images(cell))
    third = Place(update=feed.updates_per_epoch + 3, micro_batch=1, position=2)
    assert feed.row_of(third) == data.train.rows[plan[3].micro_batches[1][2]]


def test_it_trains_to_the_same_bits_again(root: Path, tmp_path: Path) -> None:
    settings = config(root, train={"epochs": 2})
    one, other = (train(settings, tmp_path / name) for name in ("a", "b"))
    assert numbers(one) == numbers(other)
    shuffled = config(root, sampling="shuffled", train={"epochs": 2})
    assert numbers(train(shuffled, tmp_path / "c")) != numbers(one)


def test_batchnorm_is_recalibrated_on_every_picture_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []

    class WatchedFeed(Feed):
        def batches(self, plan: Sequence[Update], epoch: int) -> Iterator[Batch]:
            asked.append(drawn(plan))
            return super().batches(plan, epoch)

    monkeypatch.setattr(loop, "Feed", WatchedFeed)
    train(config(root, train={"epochs": 1, "batchnorm": {"recalibrate": 1000}}), tmp_path)
    training, recalibration = asked
    assert len(training) == len(recalibration)
    assert len(set(training)) < len(training)
    assert sorted(recalibration) == list(range(len(recalibration)))
