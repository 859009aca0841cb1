from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[[str], Any]


def outcome(script: Script, loss: float = 0.5, **params: float) -> Any:
    curves = {"train/loss": [1.0, loss], "val/accuracy": [0.25, 0.75]}
    return script("packing").Outcome(params, curves)


@pytest.mark.parametrize(("at_once", "share"), [(1, 1.0), (2, 0.5), (3, 0.3333), (7, 0.1428)])
def test_all_fit_on_the_gpu(script: Script, at_once: int, share: float) -> None:
    assert script("packing").share_of(at_once) == share
    assert share * at_once <= 1


def test_equal_outcomes_are_unchanged(script: Script) -> None:
    both = [{0: outcome(script, lr=0.1), 1: outcome(script, lr=0.2)} for _ in range(2)]
    assert script("packing").difference(*both) == {
        "unchanged": True,
        "differing_trials": [],
        "largest": {"train/loss": 0.0, "val/accuracy": 0.0},
    }


def test_what_differs_is_said(script: Script) -> None:
    alone = {n: outcome(script, lr=0.1) for n in range(4)}
    packed = {0: alone[0], 1: outcome(script, 0.75, lr=0.1), 2: outcome(script, lr=0.2)}
    assert script("packing").difference(packed, alone) == {
        "unchanged": False,
        "differing_trials": [1, 2, 3],  # another loss, another learning rate, missing
        "largest": {"train/loss": 0.25, "val/accuracy": 0.0},
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_trials_at_once_end_as_those_alone(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--set", "train.epochs=4", "--set", "teacher.train.epochs=1"]
    argv = ["packing.py", "--device", "cpu", "--trials", "3", "--at-once", "2", *small]
    monkeypatch.setattr("sys.argv", [*argv, "--output", str(tmp_path)])
    script("packing").main()
    record = json.loads((tmp_path / "packing-cpu.json").read_text("utf-8"))
    assert list(record["ways"]) == ["one after another", "2 at once"]
    packed = record["ways"]["2 at once"]
    assert packed["unchanged"], packed
    rows = script("table").rows_of("packing-cpu", record)
    assert [row.form for row in rows] == ["one after another", "2 at once"]
    assert rows[1].compared.endswith("× the rate, the same results")
