"""What the report is made from: importances, the map of decompositions, slices, and the trials' table."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.ledger import LEDGER, load_results
from study.report.decompositions import decomposition_map
from study.report.evidence import gather
from study.report.importances import importances
from study.report.slices import chosen_pair, numeric_axes
from study.report.trials_file import write_trials
from study.results import StudyResults, TrialRow, Value
from study.space import SearchRange
from tests.study.studies import results_of, write_study

SEARCH = {
    "optim.lr": SearchRange(loguniform=(0.01, 1.0)),
    "distill.alpha": SearchRange(uniform=(0.0, 1.0)),
    "data.batch_size": SearchRange(choice=(32, 64)),
}


def trial(number: int, value: float | None, **fields: Any) -> TrialRow:
    known = {"role": "trial", "number": number, "state": "complete", "value": value}
    return TrialRow.model_validate(known | {"directory": "/d"} | fields)


def searched(count: int) -> StudyResults:
    """Trials whose accuracy follows from α alone; every third was stopped."""
    draw = random.Random(0)
    rows: list[TrialRow] = []
    for number in range(count):
        params: dict[str, Value] = {
            "optim.lr": 10 ** draw.uniform(-2, 0),
            "distill.alpha": draw.random(),
            "data.batch_size": draw.choice((32, 64)),
        }
        state = "pruned" if number % 3 == 0 else "complete"
        rows.append(trial(number, float(params["distill.alpha"]), params=params, state=state))
    return results_of(*rows)


def test_what_decides_is_found() -> None:
    shares = importances(searched(40), SEARCH)
    assert isinstance(shares, dict)
    assert list(shares) == sorted(shares, key=lambda path: -shares[path])
    assert next(iter(shares)) == "distill.alpha"
    assert shares["distill.alpha"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("has_alpha", [range(0, 40, 2), range(3), range(20, 40), range(0)])
def test_what_only_some_trials_drew_has_a_share_too(has_alpha: range) -> None:
    """Every other one, very few, a half, none."""
    rows: list[TrialRow] = []
    for number, row in enumerate(searched(40).rows):
        drawn = dict(row.params)
        if number not in has_alpha:
            del drawn["distill.alpha"]
        value = (row.value or 0.0) / 100 + float(drawn["optim.lr"])
        rows.append(row.model_copy(update={"params": drawn, "value": value}))
    shares = importances(results_of(*rows), SEARCH)
    assert isinstance(shares, dict)
    assert shares["optim.lr"] > 0
    assert ("distill.alpha" in shares) == bool(has_alpha)
    assert sum(shares.values()) == pytest.approx(1)


def test_why_there_are_no_importances() -> None:
    one = {"optim.lr": SEARCH["optim.lr"]}
    assert "fewer than two were searched" in importances(searched(40), one)
    assert "Too few trials to tell: 19 of 20" in importances(searched(19), SEARCH)
    unmeasured = results_of(*(trial(number, None) for number in range(30)))
    assert "Too few trials to tell: 0 of 20" in importances(unmeasured, SEARCH)
    rows = [row.model_copy(update={"value": 0.5}) for row in searched(30).rows]
    assert importances(results_of(*rows), SEARCH) == "All trials are equally good."


def test_map_of_decompositions() -> None:
    def cut(number: int, k: int, n: int, value: float | None, state: str = "complete") -> TrialRow:
        params: dict[str, Value] = {"distill.k": k, "distill.n": n}
        return trial(number, value, params=params, state=state)

    rows = (
        cut(0, 5, 2, 0.9),
        cut(1, 5, 2, 0.8),
        cut(2, 5, 2, 0.2, "pruned"),
        cut(3, 1, 0, 0.6, "pruned"),
        cut(4, 3, 1, None, "failed"),
    )
    found = decomposition_map(results_of(*rows))
    assert found is not None
    assert (found.ks, found.ns) == ((1, 3, 5), (0, 1, 2))
    cell = found.cells[5, 2]
    assert (cell.best, cell.mean) == (0.9, pytest.approx(0.85))
    assert (len(cell.rows), len(cell.whole), cell.shade) == (3, 2, 4)
    assert (found.cells[1, 0].best, found.cells[1, 0].shade) == (0.6, 0)
    assert found.cells[3, 1].best is None
    assert decomposition_map(results_of(trial(0, 0.5))) is None


def test_the_pair_of_numbers_to_look_at() -> None:
    axes = numeric_axes(SEARCH, {"optim.lr": "lr"})
    assert [(axis.name, axis.scale.log) for axis in axes] == [
        ("lr", True),
        ("distill.alpha", False),
    ]
    pair = chosen_pair(axes, {})
    assert pair is not None
    assert [axis.path for axis in pair] == ["optim.lr", "distill.alpha"]
    others = {
        "optim.momentum": SearchRange(uniform=(0.0, 0.9)),
        "train.epochs": SearchRange.model_validate({"int": (5, 20)}),
        "optim.lr": SEARCH["optim.lr"],
    }
    pair = chosen_pair(numeric_axes(others, {}), {"train.epochs": 0.7, "optim.momentum": 0.2})
    assert pair is not None
    assert [axis.path for axis in pair] == ["train.epochs", "optim.momentum"]
    assert chosen_pair(axes[:1], {}) is None


def test_the_trials_as_pandas_reads_them(tmp_path: Path) -> None:
    folder = write_study(tmp_path, trials=12, epochs=6)
    results = load_results(folder / LEDGER)
    evidence = gather(results, folder)
    table = pd.read_parquet(write_trials(evidence))
    assert len(table) == len(results.rows) == 14
    trials = table[table.role == "trial"].set_index("number")
    for row in results.of("trial"):
        told = trials.loc[row.number]
        assert told["state"] == row.state
        assert told["optim.lr"] == row.params["optim.lr"]
        assert told["distill.decomposition"] == row.params["distill.decomposition"]
        assert told["distill.k"] == row.params["distill.k"]
        assert told["value"] == told["best.val/accuracy"] == row.value
        assert told["final.val/accuracy"] == evidence.curve(row)[-1].metrics["val/accuracy"]
        assert list(told["findings"]) == [finding.name for finding in row.findings or ()]
    teacher = table[table.role == "teacher"].iloc[0]
    assert pd.isna(teacher["optim.lr"])
    assert teacher["findings"] is None
    assert [path.name for path in folder.glob("*.tmp")] == []


def test_the_table_of_nothing_and_of_mixed_values(tmp_path: Path) -> None:
    assert len(pd.read_parquet(write_trials(gather(results_of(), tmp_path)))) == 0
    rows = (
        trial(0, None, params={"a": 1, "b": "x", "c": True, "d": 1}),
        trial(1, None, params={"a": 0.5, "b": 2, "c": False}),
    )
    table = pd.read_parquet(write_trials(gather(results_of(*rows), tmp_path)))
    assert list(table["a"]) == [1.0, 0.5]
    assert list(table["b"]) == ["x", "2"]
    assert list(table["c"]) == [True, False]
    assert table["d"].iloc[0] == 1
    assert pd.isna(table["d"].iloc[1])
