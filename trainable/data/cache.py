"""The node's cache folder, and arrays in it: one memory-mapped Arrow file a set of them.

Files are named by the key of what they were made from, so that an old one is never wrong, only
unused; the folder may be deleted whenever no study runs.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from filelock import FileLock

from trainable.data.faults import data_error

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_CHECKSUM = "checksum"


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a file of the cache holds."""

    columns: Mapping[str, npt.NDArray[Any]]
    """(n,) or (n, m) numbers by name; read-only where they come from a file."""
    facts: Mapping[str, str]
    """What else there is to know of them."""


@contextmanager
def replace_file(path: Path) -> Generator[Path]:
    """A temporary path to write to, renamed to `path` at the end and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, parse: Callable[[Arrays], _T]) -> _T | None:
    """What `parse` makes of a file, memory-mapped; None if that is missing or of no use (and logged).

    Of no use is one that is damaged, and one that `parse` refuses with a KeyError or ValueError.
    """
    try:
        return parse(_read(path))
    except FileNotFoundError:
        return None
    except (KeyError, OSError, ValueError, pa.ArrowException) as error:
        _log.warning("%s cannot be used (%s) and will be made again", path, error)
        return None


def build(path: Path, parse: Callable[[Arrays], _T], make: Callable[[], Arrays]) -> _T:
    """What `parse` makes of a file that the first of all processes which ask for it makes.

    Raises:
        DataError: From `make`, or where the cache folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if (found := load(path, parse)) is not None:
                return found
            for abandoned in path.parent.glob(f".{path.name}.*"):
                abandoned.unlink()  # by a process that was killed: who writes holds the lock
            made = make()
            with replace_file(path) as temporary:
                _write(temporary, made)
                return parse(_read(temporary))  # what is refused leaves no file
    except (OSError, pa.ArrowException) as error:
        raise data_error(
            str(path.parent),
            f"must be a folder that can be written and has room ({error})",
            "make room, or set KD_STUDY_CACHE to another folder",
        ) from error


def _write(path: Path, arrays: Arrays) -> None:
    """One record batch, uncompressed, so that each column is one block of the mapped file."""
    columns = {name: _column(array) for name, array in arrays.columns.items()}
    metadata = {**arrays.facts, _CHECKSUM: str(_checksum(arrays.columns))}
    batch = pa.record_batch(columns).replace_schema_metadata(metadata)
    large = pa.ipc.IpcWriteOptions(allow_64bit=True)  # columns of more than 2³¹ numbers
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, batch.schema, options=large) as writer,
    ):
        writer.write_batch(batch)


def _read(path: Path) -> Arrays:
    with pa.memory_map(str(path)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    facts = {key.decode(): value.decode() for key, value in batch.schema.metadata.items()}
    columns = {name: _array(batch.column(name)) for name in batch.schema.names}
    if str(_checksum(columns)) != facts.pop(_CHECKSUM):
        raise ValueError("its checksum differs")
    return Arrays(columns, facts)


def _column(array: npt.NDArray[Any]) -> Any:
    """(n,) numbers, or (n, m) as n fixed-size lists, without a copy."""
    flat = pa.array(array.reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


def _array(column: Any) -> npt.NDArray[Any]:
    """As it was given to `_column`, without a copy; read-only."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=True)
    return column.values.to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _checksum(columns: Mapping[str, npt.NDArray[Any]]) -> int:
    """Σ of all columns as 64-bit words, modulo 2⁶⁴: a lost or stale page changes it."""
    total = 0
    for column in columns.values():
        flat = column.reshape(-1).view(np.uint8)
        whole = len(flat) // 8 * 8
        total += int(flat[:whole].view(np.uint64).sum(dtype=np.uint64))
        total += int(flat[whole:].sum(dtype=np.uint64))
    return total % 2**64
