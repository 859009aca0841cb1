from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[[str], Any]
TIMES = {
    "one rank": [0.9, 0.95, 0.5],
    "one rank, kernel by kernel": [0.8, 0.8, 0.8],
    "all ranks": [1.0, 1.0, 1.0],
    "all ranks, kernel by kernel": [2.0, 1.0, 2.0],
    "all ranks, SyncBatchNorm": [1.1, 1.2, 1.1],
    "all ranks, 4 micro-batches": [3.0, 3.6, 3.2],
}


def test_ratios_are_medians_of_the_rounds(script: Script) -> None:
    found = script("scaling").ratios(TIMES)
    assert {name: each["ratio"] for name, each in found.items()} == pytest.approx(
        {
            "weak_scaling": 0.9,
            "weak_scaling_kernel_by_kernel": 0.4,
            "sync_batchnorm": 1.1,
            "of_a_micro_batch": 0.8,
        }
    )
    assert found["sync_batchnorm"]["ratios"] == pytest.approx([1.1, 1.2])


def test_a_form_that_was_not_measured_has_no_ratio(script: Script) -> None:
    few = {name: TIMES[name] for name in ("one rank", "all ranks", "one rank, kernel by kernel")}
    assert list(script("scaling").ratios(few)) == ["weak_scaling"]


@pytest.mark.parametrize(
    ("name", "rate"),
    [("one rank", 200), ("all ranks", 400), ("all ranks, 4 micro-batches", 1600)],
)
def test_pictures_of_all_ranks_are_counted(script: Script, name: str, rate: float) -> None:
    options = Namespace(batch=100, ranks=2)
    assert script("scaling").pictures_a_second(name, 0.5, options) == rate


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_gradients_are_exchanged_once_an_update(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = ["--student", "mini_resnet_10_4", "--teacher", "mini_resnet_10_4"]
    small = ["--batch", "4", "--rounds", "2", "--updates", "1"]
    argv = ["scaling.py", "--device", "cpu", *networks, *small, "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", argv)
    script("scaling").main()
    record = json.loads((tmp_path / "scaling-2x-cpu.json").read_text("utf-8"))
    exchanges = record["exchanges"]
    # Gradients in one bucket, and whether all is finite.
    assert exchanges["1"] == exchanges["4"] == 2
    assert set(record["forms"]) == {
        "one rank",
        "all ranks",
        "all ranks, SyncBatchNorm",
        "all ranks, 4 micro-batches",
    }
    assert set(record["ratios"]) == {"weak_scaling", "sync_batchnorm", "of_a_micro_batch"}
    rows = script("table").rows_of("scaling-2x-cpu", record)
    assert len(rows) == 5
