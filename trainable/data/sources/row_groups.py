"""Pictures out of Parquet row groups, the smallest piece of a Parquet file that can be read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from trainable.data.faults import data_error
from trainable.data.sources.base import Labels, Picture, corrupt, decode
from trainable.errors import DataError

KEPT_BYTES = 512 * 2**20
"""Encoded pictures that one process keeps at hand. A larger set, read in random order, reads whole
row groups again and again: decode it once (`data.loader: resident`), or use `image_folder`."""


class RowGroup(NamedTuple):
    """Where a row group lies."""

    file: Path
    number: int
    """In its file."""
    first_in_split: int
    """Its first row, counted over all files of the split."""
    first_in_file: int
    """Its first row, counted in its file."""


class _Kept:
    """The row groups used last, up to `KEPT_BYTES`, and the lock that guards them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.columns: OrderedDict[int, Any] = OrderedDict()

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()  # Another process starts with none.

    def add(self, group: int, column: Any) -> None:
        self.columns[group] = column
        while len(self.columns) > 1 and sum(c.nbytes for c in self.columns.values()) > KEPT_BYTES:
            self.columns.popitem(last=False)


@dataclass(frozen=True, eq=False)
class ParquetSplit:
    """Pictures of one split of Parquet files."""

    labels: Labels
    files: tuple[Path, ...]
    column: str
    """Binary, or a struct with a binary field `bytes`."""
    groups: tuple[RowGroup, ...] = field(init=False)
    _firsts: npt.NDArray[np.int64] = field(init=False, repr=False)
    _kept: _Kept = field(default_factory=_Kept, init=False, repr=False)

    def __post_init__(self) -> None:
        groups = tuple(_row_groups(self.files))
        firsts = np.asarray([group.first_in_split for group in groups], dtype=np.int64)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "_firsts", firsts)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Picture:
        """One decoded picture, uint8 (H, W, C)."""
        group, row = self._place(index)
        data = self._encoded(group)[row].as_py()
        if data is None:
            raise corrupt(self.name(index), "it has no bytes")
        return decode(data, self.name(index))

    def name(self, index: int) -> str:
        """E.g. `train-00000-of-00001.parquet row 17`, rows counted from 0 in the file."""
        number, row = self._place(index)
        group = self.groups[number]
        return f"{group.file.name} row {group.first_in_file + row}"

    def _place(self, index: int) -> tuple[int, int]:
        """The row group of a row of the split, and the row in it."""
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return number, index - self.groups[number].first_in_split

    def _encoded(self, number: int) -> Any:
        """The encoded pictures of a row group, as an Arrow array of bytes."""
        with self._kept.lock:
            if number in self._kept.columns:
                self._kept.columns.move_to_end(number)
                return self._kept.columns[number]
            group = self.groups[number]
            try:
                table = pq.ParquetFile(group.file).read_row_group(
                    group.number, columns=[self.column], use_threads=False
                )
            except (OSError, pa.ArrowInvalid) as error:
                raise unreadable(group.file, error) from error
            column = table.column(0).combine_chunks()
            if pa.types.is_struct(column.type):
                column = column.field("bytes")
            self._kept.add(number, column)
            return column


def _row_groups(files: tuple[Path, ...]) -> Iterator[RowGroup]:
    first_in_split = 0
    for file in files:
        first_in_file = 0
        metadata = pq.ParquetFile(file).metadata
        for number in range(metadata.num_row_groups):
            yield RowGroup(file, number, first_in_split + first_in_file, first_in_file)
            first_in_file += metadata.row_group(number).num_rows
        first_in_split += first_in_file


def unreadable(file: Path, error: Exception) -> DataError:
    """The error of a file that is not Parquet, or only the beginning of it."""
    return data_error(str(file), f"must be a readable Parquet file ({error})", "fetch it again")
