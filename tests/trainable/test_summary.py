"""From sums to an epoch's metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainable.conftest import PICTURES, MakeConfig
from tests.trainable.trials import CPU, train, untrained_teacher
from trainable import records, tasks
from trainable.data.augment import Normalizer
from trainable.data.sampling import shards
from trainable.data.store import open_dataset
from trainable.engine import evaluate
from trainable.engine.summary import fluctuation
from trainable.networks.build import build_student
from trainable.networks.weights import load_weights


def test_the_distance_travelled_adds_up_over_epochs(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        distill={"method": "none", "alpha": None}, train={"epochs": 3, "observe_every": 1}
    )
    found = train(config, tmp_path)
    updates = -(-1077 // 64)  # of three quarters of the 1,437 training digits
    for name, distance in (
        (records.UPDATE_TRAVELLED, records.UPDATE_DISTANCE),
        (records.update_travelled_of("head"), records.update_distance_of("head")),
    ):
        travelled = 0.0
        for record in found:
            travelled += record.metrics[distance] * updates
            assert record.metrics[name] == pytest.approx(travelled)


def test_the_distance_goes_on_in_an_epoch_without_an_observed_update(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """17 updates an epoch, of which every 40th is observed: in epochs 1, 3 and 5."""
    train_settings = {"epochs": 3, "observe_every": 40}
    config = make_config(distill={"method": "none", "alpha": None}, train=train_settings)
    first, second, third = (record.metrics for record in train(config, tmp_path))
    assert records.UPDATE_DISTANCE not in second
    step = first[records.UPDATE_DISTANCE]
    assert second[records.UPDATE_TRAVELLED] == pytest.approx(2 * 17 * step)
    assert third[records.UPDATE_TRAVELLED] == pytest.approx(
        second[records.UPDATE_TRAVELLED] + 17 * third[records.UPDATE_DISTANCE]
    )


def test_fluctuation_is_the_mean_change_between_epochs_of_a_stage() -> None:
    epochs = [{records.VAL_ACCURACY: a} for a in (0.5, 0.75, 0.625)]
    assert fluctuation(epochs) == {records.VAL_FLUCTUATION: pytest.approx((0.25 + 0.125) / 2)}
    assert fluctuation(epochs[:1]) == {}
    assert fluctuation([{}, {}]) == {}


def test_fluctuation_begins_anew_with_each_stage(make_config: MakeConfig, tmp_path: Path) -> None:
    distill = {"method": "stablekd", "alpha": None, "lam": 1.0, "decomposition": "5/1"}
    config = make_config(distill=distill, train={"epochs": 4})
    found = train(config, tmp_path / "trial", untrained_teacher(config, tmp_path))
    have = [records.VAL_FLUCTUATION in record.metrics for record in found]
    assert have == [False, True, False, True]
    values = [record.metrics[records.VAL_ACCURACY] for record in found]
    last = found[-1].metrics[records.VAL_FLUCTUATION]
    assert last == pytest.approx(abs(values[3] - values[2]))


def test_accuracy_with_batch_statistics_is_that_of_training_mode(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "EVALUATION_BATCH", 100)
    config = make_config(distill={"method": "none", "alpha": None}, train={"epochs": 1})
    (record,) = train(config, tmp_path)
    data = open_dataset(config.data)
    assert data.val is not None
    normalize = Normalizer(data.mean, data.std, CPU)
    student = build_student(config, PICTURES)
    load_weights(student.whole, tasks.best_weights(tmp_path), config_path="best")
    student.train()
    correct = 0
    batches = shards(len(data.val), 100, workers=1, rank=0)
    assert len(batches) == 4
    with torch.no_grad():
        for indices in batches:
            images = normalize(torch.from_numpy(data.val.images(indices)))
            labels = torch.from_numpy(data.val.labels[indices])
            correct += int((student(images).argmax(1) == labels).sum())
    by_batch = record.metrics[records.VAL_ACCURACY_BATCH_STATS]
    assert by_batch == correct / len(data.val)
    assert abs(by_batch - record.metrics[records.VAL_ACCURACY]) > 0.02
