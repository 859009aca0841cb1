"""Whether places can be written, found out without leaving anything there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_SQLITE = b"SQLite format 3\0"


def nearest_folder(place: Path) -> Path:
    """The place itself if it is there, or else the nearest above it that is."""
    return next(near for near in (place, *place.parents) if os.path.exists(near))


def takes_files(folder: Path) -> bool:
    """Whether files can be made in a folder.

    It tries with one that has no name: permissions say nothing of what root may do, in /proc for one.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def sqlite_problem(path: Path) -> str | None:
    """Why a SQLite database can neither be opened nor made there; None if it can."""
    if not os.path.exists(path):
        folder = nearest_folder(path)
        return None if takes_files(folder) else f"{folder} is no folder that can be written"
    try:
        with path.open("rb+") as file:
            head = file.read(len(_SQLITE))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None if head in (b"", _SQLITE) else f"{path} is no SQLite database"
