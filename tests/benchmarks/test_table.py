from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import BENCHMARKS

RESULTS = BENCHMARKS / "results"
Script = Callable[[str], Any]


def a_record(step_ms: float, gpus: list[str], **settings: Any) -> dict[str, Any]:
    networks = {"teacher": "big", "student": "small", "precision": "fp16"}
    forms = {
        "plain": {"step_ms": step_ms, "gain": 1.0},
        "ours": {"step_ms": step_ms / 4, "gain": 4.0},
    }
    return {
        "environment": {
            "date": "2026-01-02",
            "gpus": gpus,
            "cpus": 2,
            "packages": {"torch": "2.11.0"},
        },
        "settings": {**networks, **settings},
        "batches": {"128": forms},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "step-a-gpu.json").write_text(json.dumps(a_record(10, ["A GPU"])))
    return tmp_path


def test_a_step_in_text(script: Script, folder: Path) -> None:
    table = script("table")
    assert table.as_text(table.read([folder], ["step"])).splitlines() == [
        "step · big → small, fp16, batch 128 · A GPU, 2 CPUs · torch 2.11.0 · 2026-01-02",
        "",
        "form   figure           compared",
        "plain  10.00 ms a step",
        "ours   2.50 ms a step   4.00× as fast as plain",
    ]


def test_a_step_in_markdown(script: Script, folder: Path) -> None:
    table = script("table")
    assert table.as_markdown(table.read([folder], ["step"])).splitlines()[2:] == [
        "| form | figure | compared |",
        "| --- | --- | --- |",
        "| plain | 10.00 ms a step |  |",
        "| ours | 2.50 ms a step | 4.00× as fast as plain |",
    ]


def test_a_case_is_named_in_its_first_line_alone(script: Script, folder: Path) -> None:
    table = script("table")
    (folder / "step-cpu.json").write_text(json.dumps(a_record(100, ["A GPU"])))
    head, *lines = table.as_text(table.read([folder], ["step"])).splitlines()[2:]
    assert head.split() == ["form", "figure", "compared", "hardware"]
    assert [line.rpartition("  ")[2] for line in lines] == ["A GPU, 2 CPUs"] * 2 + ["2 CPUs"] * 2
    record = a_record(100, ["A GPU"], precision="fp32")
    (folder / "step-cpu.json").write_text(json.dumps(record))
    lines = table.as_text(table.read([folder], ["step"])).splitlines()[3:]
    assert [line.partition("batch")[0].strip() for line in lines[::2]] == [
        "big → small, fp16,",
        "big → small, fp32,",
    ]
    assert all(line.startswith("      ") for line in lines[1::2])


def test_the_first_folders_record_is_shown(script: Script, folder: Path, tmp_path: Path) -> None:
    table = script("table")
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "step-a-gpu.json").write_text(json.dumps(a_record(8, ["A GPU"])))
    assert [row.figure for row in table.read([newer, folder], ["step"])] == [
        "8.00 ms a step",
        "2.00 ms a step",
    ]


def test_a_step_is_compared_with_its_parts_too(script: Script) -> None:
    table = script("table")
    record = a_record(10, ["A GPU"])
    forms = record["batches"]["128"]
    forms["student alone"] = {"step_ms": 3.0, "gain": 3.3}
    forms["teacher in bf16"] = {"step_ms": 1.0, "gain": 10.0, "of_teacher": 0.52}
    forms["plain"]["of_parts"], forms["ours"]["of_parts"] = 1.5, 1.08
    assert [row.compared for row in table.rows_of("step-a-gpu", record)] == [
        "1.50× the time of student + teacher alone",
        "4.00× as fast as plain, 1.08× the time of student + teacher alone",
        "",
        "0.52× the time of teacher alone",
    ]


def test_peers_are_compared_with_the_products_best(script: Script) -> None:
    table = script("table")
    record = a_record(10, ["A GPU", "A GPU"])
    record["batches"]["128"]["plain"]["of_last"] = 4.0
    record["batches"]["128"]["ours"]["of_last"] = 1.0
    rows = table.rows_of("peers-a-gpu", record)
    assert [row.compared for row in rows] == ["4.00× the time of ours", ""]
    assert {row.hardware for row in rows} == {"A GPU, 2 CPUs"}  # of the two, one was used


def test_every_record_of_speed_is_in_the_table(script: Script) -> None:
    table = script("table")
    rows = table.read([RESULTS], list(table.READERS))
    records = [
        path
        for path in RESULTS.glob("*.json")
        if any(path.stem.startswith(f"{name}-") for name in table.READERS)
    ]
    assert len(records) >= 7
    assert len({(r.benchmark, r.case, r.form, r.hardware, r.torch) for r in rows}) == len(rows)
    for path in records:
        record = json.loads(path.read_text("utf-8"))
        own = table.rows_of(path.stem, record)
        assert own
        assert set(own) <= set(rows)
        assert {row.date for row in own} == {record["environment"]["date"]}
    assert all(row.figure[0].isdigit() for row in rows)
