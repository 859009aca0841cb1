"""The trials of a study as a table for pandas: one row a trial."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from study.report.evidence import Evidence
from study.results import TrialRow, Value

TRIALS = "trials.parquet"
"""The table's file in a study's folder."""

FINAL, BEST = "final.", "best."
"""What precedes a metric's name: its value in the last epoch, and in the epoch of the best accuracy."""

_Told = Callable[[TrialRow], Any]
_FIELDS: tuple[tuple[str, pa.DataType, _Told], ...] = (
    ("role", pa.string(), lambda row: row.role),
    ("number", pa.int64(), lambda row: row.number),
    ("of", pa.string(), lambda row: row.of),
    ("state", pa.string(), lambda row: row.state),
    ("epochs", pa.int64(), lambda row: row.epochs),
    ("best_epoch", pa.int64(), lambda row: row.best_epoch),
    ("value", pa.float64(), lambda row: row.value),
    ("test_accuracy", pa.float64(), lambda row: row.test_accuracy),
    ("seconds", pa.float64(), lambda row: row.seconds),
    ("findings", pa.list_(pa.string()), lambda row: _finding_names(row)),
    ("error", pa.string(), lambda row: row.error),
    ("run_id", pa.string(), lambda row: row.run_id),
    ("directory", pa.string(), lambda row: row.directory),
)


def write_trials(evidence: Evidence) -> Path:
    """Write `trials.parquet`: the ledger's fields, params by dotted path, final and best metrics.

    `findings` is null for a trial that was not diagnosed, and empty for a healthy one.
    """
    path = evidence.folder / TRIALS
    temporary = path.with_suffix(".tmp")
    pq.write_table(trials_table(evidence), temporary)
    os.replace(temporary, path)
    return path


def trials_table(evidence: Evidence) -> Any:
    """A `pyarrow.Table` of one row a trial, baselines and teacher with them, in the ledger's order."""
    rows = evidence.results.rows
    columns = {name: pa.array([told(row) for row in rows], kind) for name, kind, told in _FIELDS}
    for path in dict.fromkeys(path for row in rows for path in row.params):
        columns[path] = _params_column([row.params.get(path) for row in rows])
    finals = [_metrics_at(evidence, row, None) for row in rows]
    bests = [_metrics_at(evidence, row, row.best_epoch) for row in rows]
    for prefix, found in ((FINAL, finals), (BEST, bests)):
        for metric in sorted({metric for metrics in found for metric in metrics}):
            values = [metrics.get(metric) for metrics in found]
            columns[f"{prefix}{metric}"] = pa.array(values, pa.float64())
    return pa.table(columns)


def _finding_names(row: TrialRow) -> list[str] | None:
    return None if row.findings is None else [finding.name for finding in row.findings]


def _params_column(values: list[Value | None]) -> Any:
    """Of one type: whole numbers, numbers, truth values, or else text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return pa.array(values, pa.float64() if float in kinds else pa.int64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _metrics_at(evidence: Evidence, row: TrialRow, epoch: int | None) -> dict[str, float]:
    """The metrics of an epoch, or of the last one."""
    curve = evidence.curve(row)
    if epoch is not None:
        curve = tuple(record for record in curve if record.epoch == epoch)
    return dict(curve[-1].metrics) if curve else {}
