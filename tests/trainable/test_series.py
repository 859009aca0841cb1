"""The file of every layer's statistics."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.trainable.conftest import MakeConfig
from tests.trainable.trials import train
from trainable import records
from trainable.engine.series import add_epoch
from trainable.engine.summary import Summary
from trainable.records import STATISTICS


def summary(norm: float) -> Summary:
    return Summary(
        {records.GRAD_NORM: norm, records.VAL_ACCURACY: 0.5},
        layers={"conv1.weight": {records.GRAD_NORM: norm}, "bn1": {records.BN_DRIFT: 0.25}},
        blocks={"layer1": {records.GRAD_NORM: 2 * norm}},
        owners={"conv1.weight": "layer1", "bn1.weight": "layer1"},
    )


def test_rows_are_layers_blocks_and_the_whole(tmp_path: Path) -> None:
    add_epoch(tmp_path, 1, summary(3.0))
    rows = pq.read_table(tmp_path / STATISTICS).to_pylist()
    keys = ("epoch", "block", "layer", records.GRAD_NORM, records.BN_DRIFT)
    assert [tuple(row[key] for key in keys) for row in rows] == [
        (1, None, None, 3.0, None),
        (1, "layer1", None, 6.0, None),
        (1, "layer1", "conv1.weight", 3.0, None),
        (1, "layer1", "bn1", None, 0.25),
    ]
    assert records.VAL_ACCURACY not in rows[0]


def test_an_epoch_that_is_trained_again_replaces_what_there_was(tmp_path: Path) -> None:
    for epoch, norm in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 5.0)):
        add_epoch(tmp_path, epoch, summary(norm))
    table = pq.read_table(tmp_path / STATISTICS)
    whole = [row for row in table.to_pylist() if row["block"] is None]
    assert [(row["epoch"], row[records.GRAD_NORM]) for row in whole] == [(1, 1.0), (2, 5.0)]
    assert [path.name for path in tmp_path.iterdir()] == [STATISTICS]


def test_a_trial_keeps_its_series(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(distill={"method": "none", "alpha": None}, teacher={})
    found = train(config, tmp_path)
    rows = pq.read_table(tmp_path / STATISTICS).to_pylist()
    assert {row["epoch"] for row in rows} == {1, 2}
    whole = [row for row in rows if row["block"] is None]
    for row, record in zip(whole, found, strict=True):
        for name in (records.GRAD_NORM, records.UPDATE_DISTANCE, records.BN_DRIFT):
            assert row[name] == pytest.approx(record.metrics[name])
    layers = [row["layer"] for row in rows if row["epoch"] == 2 and row["layer"]]
    assert "layer2.0.bn1" in layers
    assert "layer2.0.conv1.weight" in layers
    assert all(row["block"] for row in rows if row["layer"])
    (first,) = [r for r in rows if r["layer"] == "bn1" and r["epoch"] == 2]
    assert first[records.BN_DRIFT] > 0
