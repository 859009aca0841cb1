from __future__ import annotations

from pathlib import Path

from study.curves import CURVE, add_epoch, read_curve
from trainable.records import EpochRecord


def record(epoch: int, accuracy: float = 0.5) -> EpochRecord:
    return EpochRecord(epoch, {"val/accuracy": accuracy, "train/loss": 1.25}, 1_000 + epoch)


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "0003"
    assert read_curve(folder) == ()
    folder.mkdir(parents=True)
    records = [record(1), record(2, 0.75)]
    for one in records:
        add_epoch(folder, one)
    assert read_curve(folder) == tuple(records)


def test_an_epoch_that_was_told_twice_counts_once_as_told_last(tmp_path: Path) -> None:
    for one in (record(1), record(2), record(1, 0.25)):
        add_epoch(tmp_path, one)
    assert read_curve(tmp_path) == (record(1, 0.25), record(2))


def test_a_line_that_was_cut_off_is_passed_over_and_spoils_no_other(tmp_path: Path) -> None:
    add_epoch(tmp_path, record(1))
    with (tmp_path / CURVE).open("a") as file:
        file.write('{"epoch": 2, "metr')
    assert read_curve(tmp_path) == (record(1),)
    add_epoch(tmp_path, record(2))
    assert read_curve(tmp_path) == (record(1), record(2))
