"""The studies of a folder at a glance, from their ledgers alone: nothing is opened that a driver could miss."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from study.config import RESOLVED
from study.ledger import CHANGES, LEDGER, LOCK, load_results
from study.results import StudyResults
from trainable.errors import InputError

Standing = Literal["running", "interrupted", "ended", "unreadable"]
"""Of a study; `unreadable` is one whose ledger is damaged, or another version's."""


@dataclass(frozen=True)
class Listed:
    """A study as it stands."""

    name: str
    """Of its folder, by which other commands find it."""
    standing: Standing
    changed_at: float
    """Seconds since 1970, when its ledger was last written."""
    results: StudyResults | None = None
    """None before its ledger is begun, and where that cannot be read."""


def studies_in(storage: Path) -> list[Listed]:
    """The studies under `storage`, the one that changed last first; other folders are passed over."""
    found = {path.parent for name in (LEDGER, RESOLVED) for path in storage.glob(f"*/{name}")}
    return sorted(map(_listed, found), key=lambda study: (-study.changed_at, study.name))


def _listed(folder: Path) -> Listed:
    name, changed_at = folder.name, _changed_at(folder)
    at_rest: Standing = "running" if _is_driven(folder) else "interrupted"
    if not (folder / LEDGER).exists():
        return Listed(name, at_rest, changed_at)
    try:
        results = load_results(folder / LEDGER)
    except (InputError, OSError):
        return Listed(name, "unreadable", changed_at)
    return Listed(name, "ended" if results.finished else at_rest, changed_at, results)


def _changed_at(folder: Path) -> float:
    paths = [folder / name for name in (CHANGES, LEDGER, RESOLVED)]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def _is_driven(folder: Path) -> bool:
    """Whether a driver holds the folder's lock; for the instant of looking, no other driver can take it."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # of a study that came without it, or a file system without locks
        return False
    return False
