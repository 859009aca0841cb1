"""The node's cache folder, and decoded splits in it: one memory-mapped Arrow file each.

Files are named by the key of what they were made from, so that an old one is never wrong, only
unused; the folder may be deleted whenever no study runs.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from filelock import FileLock

from trainable.data.faults import data_error

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$KD_STUDY_CACHE`, else `$XDG_CACHE_HOME/kd-study`, else `~/.cache/kd-study`."""
    own = os.environ.get("KD_STUDY_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache").absolute() / "kd-study"


@dataclass(frozen=True, eq=False)
class Decoded:
    """A split decoded once: labels, exact sums over the pixels and, where kept, the pixels."""

    labels: npt.NDArray[np.int64]
    """(n,)."""
    sums: npt.NDArray[np.int64]
    """(n, C): Σ of each picture's uint8 values."""
    squares: npt.NDArray[np.int64]
    """(n, C): Σ of their squares."""
    hashes: npt.NDArray[np.uint64]
    """(n,): BLAKE2b of each picture's pixels."""
    shape: tuple[int, int, int]
    """C, H, W."""
    pixels: npt.NDArray[np.uint8] | None
    """(n, C, H, W), read-only where it comes from a file; None for a set that is streamed."""

    def __len__(self) -> int:
        return len(self.labels)


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


def decoded_path(cache: Path, key: str) -> Path:
    """Where the decoded split of this key lies."""
    return cache / "data" / f"{key}.arrow"


def load(path: Path) -> Decoded | None:
    """The decoded split in a file, memory-mapped; None if it is missing or damaged (and logged)."""
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except (KeyError, OSError, ValueError, pa.ArrowException) as error:
        _log.warning("%s is damaged (%s) and will be made again", path, error)
        return None


def build(path: Path, make: Callable[[], Decoded]) -> Decoded:
    """The decoded split in a file, made by the first of all processes that ask for it.

    Raises:
        DataError: From `make`, or where the cache folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if (found := load(path)) is not None:
                return found
            made = make()
            with replace_file(path) as temporary:
                _write(temporary, made)
            return _read(path)
    except OSError as error:
        raise data_error(
            str(path.parent),
            f"must be a folder that can be written and has room ({error})",
            "make room, or set KD_STUDY_CACHE to another folder",
        ) from error


def _write(path: Path, decoded: Decoded) -> None:
    """One record batch, uncompressed, so that its pixels are one block of the mapped file."""
    columns: dict[str, Any] = {
        "label": pa.array(decoded.labels),
        "sum": _lists(decoded.sums),
        "square": _lists(decoded.squares),
        "hash": pa.array(decoded.hashes),
    }
    if decoded.pixels is not None:
        columns["pixels"] = _lists(decoded.pixels.reshape(len(decoded), -1))
    metadata = {
        "shape": ",".join(str(length) for length in decoded.shape),
        "checksum": str(_checksum(decoded)),
    }
    batch = pa.record_batch(columns).replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _read(path: Path) -> Decoded:
    with pa.memory_map(str(path)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    metadata = {key.decode(): value.decode() for key, value in batch.schema.metadata.items()}
    channels, height, width = (int(length) for length in metadata["shape"].split(","))
    pixels = None
    if "pixels" in batch.schema.names:
        pixels = _array(batch.column("pixels")).reshape(-1, channels, height, width)
    decoded = Decoded(
        labels=_array(batch.column("label")),
        sums=_array(batch.column("sum")).reshape(-1, channels),
        squares=_array(batch.column("square")).reshape(-1, channels),
        hashes=_array(batch.column("hash")),
        shape=(channels, height, width),
        pixels=pixels,
    )
    if str(_checksum(decoded)) != metadata["checksum"]:
        raise ValueError("its checksum differs")
    return decoded


def _lists(array: npt.NDArray[Any]) -> Any:
    """An (n, m) array as n fixed-size lists, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _array(column: Any) -> Any:
    """The numbers of a column, lists one after the other, without a copy; read-only."""
    values = column.values if pa.types.is_fixed_size_list(column.type) else column
    return values.to_numpy(zero_copy_only=True)


def _checksum(decoded: Decoded) -> int:
    """Σ of all columns as 64-bit words, modulo 2⁶⁴: a lost or stale page changes it."""
    columns = [decoded.labels, decoded.sums, decoded.squares, decoded.hashes]
    total = sum(int(column.view(np.uint64).sum(dtype=np.uint64)) for column in columns)
    if decoded.pixels is not None:
        flat = decoded.pixels.reshape(-1)
        whole = len(flat) // 8 * 8
        total += int(flat[:whole].view(np.uint64).sum(dtype=np.uint64))
        total += int(flat[whole:].sum(dtype=np.uint64))
    return total % 2**64
