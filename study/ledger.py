"""The ledger of a study: every trial with its state, kept as JSON in the study's folder.

    results.json       all of it, as it was when it was last written whole
    changes.jsonl      a line for each change since: the study's own figures, and the rows that changed

The driver adds a line after every change, `kd-study report` reads both, and a resumed study starts from
them. To write all rows at every epoch would cost a study of a thousand trials more than all else that its
driver does.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from study.config import embedded_store
from study.results import StudyResults
from trainable.errors import InputError, input_error

LEDGER = "results.json"
"""The ledger's file in a study's folder."""
CHANGES = "changes.jsonl"
"""The file of what changed since that was written whole."""
LOCK = ".driver.lock"
"""The file that a study's driver holds locked while it is at work."""
_FEWEST_BYTES = 64 * 1024
"""Of changes, before a ledger is written whole again, which is done when they are longer than itself."""
_READINGS = 5
"""At most, of a ledger that its driver writes whole in the meantime."""


class Ledger:
    """The ledger of a study as its driver writes it."""

    def __init__(self, path: Path) -> None:
        self._path, self._changes = path, path.with_name(CHANGES)
        self._kept: StudyResults | None = None
        """What was written last. Unknown at first: a driver that died may have left half a line."""
        self._room = 0
        """Bytes that may be added before it is written whole again."""

    def write(self, results: StudyResults) -> None:
        """Write it whole."""
        save_results(results, self._path)
        self._kept, self._room = results, max(_FEWEST_BYTES, self._path.stat().st_size)

    def add(self, results: StudyResults) -> None:
        """Write what is new: rows that are not the objects they were; all of it after a failure."""
        if self._kept is None or results.changes != self._kept.changes + 1:
            self.write(results)
            return
        known = set(map(id, self._kept.rows))
        new = tuple(row for row in results.rows if id(row) not in known)
        line = f"{results.model_copy(update={'rows': new}).model_dump_json()}\n".encode()
        if len(line) > self._room:
            self.write(results)
            return
        with self._changes.open("ab") as file:
            file.write(line)
        self._kept, self._room = results, self._room - len(line)


def find_results(storage: Path, name: str) -> StudyResults:
    """The ledger of the study `name` under `storage`; InputError names the studies that are there."""
    path = storage / name / LEDGER
    if path.is_file():
        return _as_it_lies(path)
    raise no_such_study(storage, name, beside=LEDGER)


def no_such_study(storage: Path, name: str, *, beside: str) -> InputError:
    """The error that names the studies under `storage`: the folders with this file."""
    known = sorted(found.parent.name for found in storage.glob(f"*/{beside}"))
    remedy = f"there are {', '.join(known)}" if known else "run a study, or name its --storage"
    return input_error(InputError, str(storage), "must hold the study", remedy, name)


def all_results(storage: Path) -> list[StudyResults]:
    """The ledgers of all studies under `storage` that can be read, the youngest first."""
    found: list[StudyResults] = []
    for path in storage.glob(f"*/{LEDGER}"):
        with suppress(InputError):
            found.append(_as_it_lies(path))
    return sorted(found, key=lambda results: -results.started_at)


def _as_it_lies(path: Path) -> StudyResults:
    """A ledger with the places that it speaks of where they are, if its study was moved with the store beside it."""
    results = load_results(path).lying_in(path.parent)
    here = embedded_store(path.parent.parent)
    there = _file_of(results.tracking_uri)
    if there is not None and not os.path.isfile(there) and os.path.isfile(_file_of(here) or ""):
        return results.model_copy(update={"tracking_uri": here})
    return results


def _file_of(uri: str) -> str | None:
    """Of a SQLite database; None for what is none."""
    _, scheme, path = uri.rpartition("sqlite:///")
    return unquote(path) if scheme else None


def save_results(results: StudyResults, path: Path) -> None:
    """Write the whole atomically: a reader sees the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(results.model_dump_json(indent=2), encoding="utf-8")
    os.replace(temporary, path)
    path.with_name(CHANGES).unlink(missing_ok=True)


def load_results(path: Path) -> StudyResults:
    """What the ledger holds; InputError if it was another version's, or is damaged."""
    try:
        for _ in range(_READINGS):
            whole = StudyResults.model_validate_json(path.read_text(encoding="utf-8"))
            if (results := _with_changes(whole, path.with_name(CHANGES))) is not None:
                return results
        raise ValueError(f"{CHANGES} does not go on where {path.name} ends")
    except ValueError as error:
        rule = "must be the ledger of a study that this version of kd-study wrote"
        remedy = "use the version that did, or restore the file"
        raise input_error(InputError, str(path), rule, remedy) from error


def _with_changes(results: StudyResults, path: Path) -> StudyResults | None:
    """With the changes since; None if there are some between, which are in a ledger that is newer.

    What follows the last line's end is half a line, of a driver that died.
    """
    if not path.exists():
        return results
    *lines, _ = path.read_bytes().split(b"\n")
    rows = {row.key: row for row in results.rows}
    for line in lines:
        change = StudyResults.model_validate_json(line)
        if change.changes <= results.changes:
            continue
        if change.changes > results.changes + 1:
            return None
        results = change
        rows |= {row.key: row for row in change.rows}
    return results.model_copy(update={"rows": tuple(rows.values())})
