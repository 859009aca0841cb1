from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[[str], Any]


def test_cells_are_chosen_by_the_names_that_the_list_gives_them(script: Script) -> None:
    tables = script("stablekd_tables")
    listed = script("stablekd_listing").listing(tables.CELLS, [])
    names = [line.split()[0] for line in listed if line.endswith("not run")]
    assert len(names) == len(set(names)) == len(tables.CELLS)
    for wanted in (["2-kd-0-2-300", "4-kd---mse-60"], ["searched-stablekd-3-1-20"]):
        options = tables.parser().parse_args(["--cells", *wanted])
        assert [cell.name for cell in tables.chosen(options)] == wanted
    assert tables.chosen(tables.parser().parse_args([])) == list(tables.CELLS)


def test_a_name_that_no_cell_has_is_said(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = script("stablekd_tables")
    monkeypatch.setattr(sys, "argv", ["stablekd_tables.py", "--cells", "5-kd-20", "5-kd-21"])
    with pytest.raises(SystemExit) as ended:
        tables.main()
    assert ended.value.code == 2
    assert "--cells must be names that --list gives, got 5-kd-21\n" in capsys.readouterr().err


def test_a_run_says_how_many_may_have_shared_the_machine(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of one record may differ in it: the command was repeated for those that were missing."""
    tables = script("stablekd_tables")
    cells = [cell for cell in tables.CELLS if cell.name == "5-kd-20"]
    run = {"test_accuracy": 0.75, "seconds": 1.0, "teacher_test_accuracy": None}
    monkeypatch.setattr(tables, "train", lambda *_: None)
    monkeypatch.setattr(tables, "run_of", lambda results: run)
    record: dict[str, Any] = {"cells": {}}
    for seed, parallel in ((0, 1), (1, 3)):
        options = argparse.Namespace(seeds=(seed,), parallel=parallel)
        assert not tables.train_missing(cells, options, record, tmp_path / "record.json")
    kept = json.loads((tmp_path / "record.json").read_text())["cells"]["5-kd-20"]
    assert kept["runs"] == {"0": {**run, "parallel": 1}, "1": {**run, "parallel": 3}}
    assert (kept["mean"], kept["sd"]) == (75.0, 0.0)
