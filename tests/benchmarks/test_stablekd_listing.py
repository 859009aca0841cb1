from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[[str], Any]


def of(runs: dict[str, Any], **figures: float) -> dict[str, Any]:
    return {"mean": 78.5, "runs": runs, **figures}


def test_each_cell_has_a_line_for_each_record_of_it_or_says_that_there_is_none(
    script: Script,
) -> None:
    cells, listing = script("stablekd_cells"), script("stablekd_listing").listing
    two = [cells.Cell("5", "KD", 20, 72.49, "a.yaml"), cells.Cell("5", "KD", 40, None, "a.yaml")]
    run = {"seconds": 100.0, "test_accuracy": 0.785, "teacher_test_accuracy": None}
    of_teacher = {**run, "teacher_test_accuracy": 0.783}
    records = [
        ("A", {"5-kd-20": of({"0": run, "1": run}, sd=0.25)}),
        ("A", {"5-kd-20": of({"0": of_teacher})}),
        ("B", {"5-kd-20": of({"0": {**run, "curves": {"val/accuracy": [0.1, 0.5, 0.4, 0.6]}}})}),
    ]
    title, first, other, second, missing, end = listing(two, records)
    assert title.split()[:3] == ["table", "5", "paper"]
    assert first.split() == ["5-kd-20", "72.49", "78.50", "±", "0.25", "2", "100", "A"]
    assert other.endswith("A, teacher 78.30 %")
    assert second.split(",")[0].split() == ["5-kd-20", "72.49", "78.50", "1", "100", "B"]
    assert second.endswith(", whose epochs lost 10.0 points on their way")
    assert missing.split() == ["5-kd-40", "—", "not", "run"]
    assert end == ""


def test_a_table_is_one_block_wherever_its_cells_stand(script: Script) -> None:
    cells, listing = script("stablekd_cells"), script("stablekd_listing").listing
    three = [cells.Cell(table, "KD", 20, None, "a.yaml") for table in ("4", "figure 3", "4")]
    assert [line.split("  ")[0] for line in listing(three, [])] == [
        *("table 4", "4-kd-20", "4-kd-20", ""),
        *("figure 3", "figure-3-kd-20", ""),
    ]


def test_a_cell_from_two_teachers_stays_in_two_records(script: Script, tmp_path: Path) -> None:
    for name, gpus in (("a", ["X", "X"]), ("b", ["X"]), ("c", [])):
        record = {"environment": {"gpus": gpus}, "cells": {"1": name}}
        (tmp_path / f"stablekd-tables-{name}.json").write_text(json.dumps(record))
    found = script("stablekd_listing").kept_records(tmp_path)
    assert found == [("X", {"1": "a"}), ("X", {"1": "b"}), ("CPU", {"1": "c"})]


@pytest.mark.parametrize(
    ("accuracies", "lost"), [([], 0.0), ([0.5], 0.0), ([0.1, 0.3, 0.25, 0.2, 0.6, 0.5], 20.0)]
)
def test_fluctuation_is_what_was_lost_between_epochs(
    script: Script, accuracies: list[float], lost: float
) -> None:
    assert script("stablekd_listing").fluctuation(accuracies) == pytest.approx(lost)
