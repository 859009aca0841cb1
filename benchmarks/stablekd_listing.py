"""The cells of the StableKD paper's tables with what was found, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from stablekd_cells import Cell

Records = Sequence[tuple[str, Mapping[str, Any]]]
"""Of each file that `stablekd_tables` has written: the device's name, and the cells, each from one teacher."""


def kept_records(folder: Path) -> Records:
    """Of all devices, teachers and students."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for path in sorted(folder.glob("stablekd-tables-*.json")):
        record = json.loads(path.read_text())
        found.append(((record["environment"]["gpus"] or ["CPU"])[0], record["cells"]))
    return found


def listing(cells: Iterable[Cell], records: Records) -> Iterator[str]:
    """A block of lines for each table: a line for each cell and record, or for a cell that no record has."""
    tables: dict[str, list[Cell]] = {}
    for cell in cells:
        tables.setdefault(cell.table, []).append(cell)
    for table, own in tables.items():
        title = f"table {table}" if table.isdigit() else table
        yield f"{title:<45} {'paper':>6} {'here, test %':>15} {'seeds':>5} {'s each':>7}  on"
        for cell in own:
            yield from _lines(cell, records)
        yield ""


def fluctuation(accuracies: Sequence[float]) -> float:
    """Points of accuracy that were lost from one epoch to the next: 100·Σ max(0, aₜ₋₁ − aₜ)."""
    return 100 * sum(max(0.0, before - after) for before, after in pairwise(accuracies))


def _lines(cell: Cell, records: Records) -> Iterator[str]:
    head = f"{cell.name:<45} {cell.paper or '—':>6}"
    found = [(device, known[cell.name]) for device, known in records if cell.name in known]
    if not found:
        yield f"{head} {'not run':>15}"
    for device, figures in found:
        runs = list(figures["runs"].values())
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        spread = f" ± {figures['sd']:.2f}" if "sd" in figures else ""
        mean = f"{figures['mean']:.2f}{spread}"
        curves = [run["curves"]["val/accuracy"] for run in runs if "curves" in run]
        lost = sum(map(fluctuation, curves)) / len(curves) if curves else None
        teacher = runs[0]["teacher_test_accuracy"]
        note = "" if teacher is None else f", teacher {100 * teacher:.2f} %"
        note += "" if lost is None else f", whose epochs lost {lost:.1f} points on their way"
        yield f"{head} {mean:>15} {len(runs):>5} {seconds:>7.0f}  {device}{note}"
