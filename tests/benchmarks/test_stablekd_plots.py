from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[[str], Any]


@pytest.fixture
def plots(script: Script) -> Any:
    return script("stablekd_plots")


def test_the_plots_are_drawn_from_the_records_that_are_kept(
    plots: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["stablekd_plots.py", "--output", str(tmp_path)])
    plots.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("reproduction_figure_3.svg", "reproduction_table_5.svg"),
    ]
    for path in tmp_path.iterdir():
        assert (plots.IMAGES / path.name).exists()


def test_figure_3_has_the_accuracies_in_per_cent(plots: Any) -> None:
    name = "figure-3-stablekd-3-0-60"
    curves = {"val/accuracy": [0.1, 0.4, 0.3], "update/distance": [0.3, 0.2, 0.1]}
    left, right = plots.figure_3({name: {"runs": {"0": {"curves": curves}}}}).axes
    (line,) = left.lines
    assert [list(axis) for axis in line.get_data()] == [[1, 2, 3], pytest.approx([10, 40, 30])]
    assert line.get_label() == "3/0: lost 10.0 points on its way"
    assert list(right.lines[0].get_ydata()) == [0.3, 0.2, 0.1]


def test_table_5_has_ours_and_the_papers(plots: Any) -> None:
    found = {
        "5-kd-20": {"mean": 73.8, "sd": 0.1, "runs": {}},
        "5-kd-60": {"mean": 76.7, "runs": {}},
    }
    (axes,) = plots.table_5(found).axes
    data = [tuple(map(list, line.get_data())) for line in axes.lines]
    assert ([20, 60], [73.8, 76.7]) in data
    assert ([20, 40, 60, 100, 150, 200], [72.49, 75.0, 76.19, 77.08, 77.5, 78.07]) in data


def test_of_two_records_the_one_with_more_seeds_is_drawn(
    plots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"1": {"runs": {"0": {}, "1": {}}}}
    records = [("A", {"1": {"runs": {"0": {}}}}), ("A", more)]
    monkeypatch.setattr(plots, "kept_records", lambda folder: records)
    assert plots.kept_cells() == more
