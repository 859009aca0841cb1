"""Writing a study's files: where a disk is full or a folder away, it is said in words, and nobody's fault."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from trainable.errors import Problem, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AWAY = (
    errno.EACCES,
    errno.EIO,
    errno.ENODEV,
    errno.ENOENT,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
)
_OF_TORCH = ("inline_container", "Parent directory")
_GIB = 2**30
_GOES_ON = "run the same command again: it goes on"


@contextmanager
def writing_to(
    folder: Path, what: str = "the study's files", then: str = _GOES_ON
) -> Generator[None]:
    """In this block a disk that is full, or a folder that is away or cannot be written, is a StorageError.

    Of errors that name a file, only of those in `folder`. `what` it must take is said, and `then` what to do
    once it does.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if _is_of_storage(error) and _lies_in(folder, error):
            raise StorageError(str(_problem(folder, error, what, then))) from error
        raise


def is_full(error: Exception) -> bool:
    """Whether a disk, or somebody's share of it, had no room."""
    return isinstance(error, OSError) and error.errno in _FULL


def _is_of_storage(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL + _AWAY
    # torch and safetensors say in their own ways that a write failed; torch not even why.
    return isinstance(error, SafetensorError) or any(text in str(error) for text in _OF_TORCH)


def _lies_in(folder: Path, error: Exception) -> bool:
    name = error.filename if isinstance(error, OSError) else None
    return name is None or Path(os.fsdecode(name)).is_relative_to(folder)


def _problem(folder: Path, error: Exception, what: str, then: str) -> Problem:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        reason = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return Problem(
        str(folder),
        f"must take {what} ({' '.join(reason.split())})",
        f"make room there, or bring the folder back, and {then}",
        _state(folder),
    )


def _state(folder: Path) -> str:
    try:
        free = shutil.disk_usage(folder).free / _GIB
    except OSError as error:
        return f"no such folder now ({error.strerror})"
    writable = "" if os.access(folder, os.W_OK) else " that cannot be written"
    return f"a folder{writable} with {free:.3f} GiB free"
