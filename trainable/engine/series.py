"""The statistics of every layer and block after each epoch: one Parquet file a trial, in its folder.

A row is an epoch of one layer (a parameter, or a BatchNorm layer), of one block (no `layer`), or of the whole
student (no `block`); its columns are named like the metrics, and empty where one does not apply.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainable import records
from trainable.engine.summary import Summary
from trainable.records import STATISTICS

_COLUMNS = (
    records.GRAD_NORM,
    records.GRAD_MEAN,
    records.GRAD_STD,
    records.GRAD_MAX,
    records.GRAD_PARAMETER_RATIO,
    records.GRAD_ZERO_SHARE,
    records.GRAD_NONFINITE_SHARE,
    records.GRAD_UPDATE_RATIO,
    records.UPDATE_DISTANCE,
    records.BN_DRIFT,
    records.BN_MIN_VAR,
    records.BN_DEAD_CHANNELS,
    records.BN_DEAD_SHARE,
    records.BN_MIN_SCALE,
    records.BN_MAX_SCALE,
)
_SCHEMA = pa.schema(
    [("epoch", pa.int32()), ("block", pa.string()), ("layer", pa.string())]
    + [(name, pa.float64()) for name in _COLUMNS]
)


def add_epoch(folder: Path, epoch: int, summary: Summary) -> None:
    """Put an epoch behind those before it; what the file has of it and of later ones is replaced.

    Written to another file first: there is always a whole one.
    """
    path = folder / STATISTICS
    table = pa.Table.from_pylist(list(_rows(epoch, summary)), schema=_SCHEMA)
    if path.exists():
        before = pq.read_table(path, schema=_SCHEMA)
        table = pa.concat_tables([before.filter(pc.field("epoch") < epoch), table])
    temporary = path.with_name(f".{STATISTICS}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def _rows(epoch: int, summary: Summary) -> Iterator[dict[str, Any]]:
    yield {"epoch": epoch, **summary.metrics}
    for block, found in summary.blocks.items():
        yield {"epoch": epoch, "block": block, **found}
    for layer, found in summary.layers.items():
        yield {"epoch": epoch, "block": summary.block_of(layer), "layer": layer, **found}
