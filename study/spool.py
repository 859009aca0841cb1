"""Entries on their way to MLflow: a file to which the driver adds lines, and a note of what has been sent.

    spool/lines.jsonl    a JSON line for each event; emptied whenever all of it has been sent
    spool/sent.json      how far each run's entries have been sent
    spool/runs.json      MLflow's id of each run, by label

One thread may add while another reads and marks. A driver that dies leaves at worst half a line, which
is no line, and entries that were sent but not marked, which change nothing when they are sent again.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from study.entries import File, Line

SPOOL = "spool"
"""Folder, in a study's, of what MLflow was not told yet."""
_LINES, _SENT, _RUNS = "lines.jsonl", "sent.json", "runs.json"
FILES = tuple(f"{SPOOL}/{name}" for name in (_LINES, _SENT, _RUNS))
"""In a study's folder, in the order in which they can be copied while what is sent is marked and forgotten."""
_IDS = TypeAdapter(dict[str, str])


class _Sent(BaseModel):
    """What `sent.json` holds."""

    study_id: str
    number: int = 0
    """All entries of the lines up to this one are sent."""
    ahead: dict[str, int] = {}
    """By a run's label: the last line whose entries of that run are sent, where that is further."""
    refused: int = 0
    """Values that the store would never take."""

    def owes(self, line: Line) -> bool:
        """Whether something of a line is not sent yet."""
        return any(line.number > self.reached(entry.run) for entry in line.entries)

    def reached(self, run: str) -> int:
        return max(self.number, self.ahead.get(run, 0))


class Spool:
    """The spool of one study, held by one driver."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._sent = _load_sent(folder)
        self._runs = _load_runs(folder)
        lines = _read(folder)
        self.last_number = _last_number(self._sent, lines)
        self.inherited = self.last_number
        """The last line that is not this driver's: entries up to there may have been sent before."""
        text = "".join(f"{line.model_dump_json()}\n" for line in lines if self._sent.owes(line))
        _replace(folder / _LINES, text)
        self.released = math.inf
        """No line after this one is read."""
        self._lock = threading.Lock()
        self._out = os.open(folder / _LINES, os.O_WRONLY | os.O_APPEND)
        self._position = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._out)

    @property
    def study_id(self) -> str:
        """A name for this study that no other has had, whatever it was called."""
        return self._sent.study_id

    @property
    def runs(self) -> Mapping[str, str]:
        """MLflow's id of each run that is known, by label."""
        return self._runs

    @property
    def is_empty(self) -> bool:
        """Whether all is sent, and forgotten."""
        return os.fstat(self._out).st_size == 0

    @property
    def refused(self) -> int:
        """Values that the store would never take, under all drivers."""
        return self._sent.refused

    def add(self, line: Line) -> None:
        """Keep a line; one that is known already adds nothing."""
        if line.number <= self.last_number:
            return
        text = f"{line.model_dump_json()}\n".encode()
        with self._lock:
            size = os.fstat(self._out).st_size
            if os.write(self._out, text) < len(text):
                os.ftruncate(self._out, size)
                raise OSError(errno.ENOSPC, "no room for a line", str(self.folder / _LINES))
            self.last_number = line.number

    def read(self, limit: int) -> list[Line]:
        """Up to `limit` lines that were not read before."""
        lines: list[Line] = []
        with (self.folder / _LINES).open("rb") as file:
            file.seek(self._position)
            while len(lines) < limit and (text := file.readline()).endswith(b"\n"):
                line = Line.model_validate_json(text)
                if line.number > self.released:
                    break
                self._position += len(text)
                lines.append(line)
        return lines

    def reached(self, run: str) -> int:
        """The last line whose entries of a run are all sent."""
        return self._sent.reached(run)

    def mark(self, run: str, number: int) -> None:
        """The entries of a run are sent up to those of a line."""
        self._keep(ahead={**self._sent.ahead, run: number})

    def count_refused(self, values: int) -> None:
        """The store will never take some values."""
        self._keep(refused=self._sent.refused + values)

    def name_runs(self, ids: Mapping[str, str]) -> None:
        """The store has given runs their ids."""
        if not ids.items() <= self._runs.items():
            self._runs = {**self._runs, **ids}  # replaced, since another thread reads it
            _replace(self.folder / _RUNS, json.dumps(self._runs, indent=1))

    def empty(self) -> None:
        """All that was read has been sent: forget the lines, unless there are new ones."""
        with self._lock:
            if not self._position or os.fstat(self._out).st_size > self._position:
                return
            self._keep(number=self.last_number, ahead={})
            os.ftruncate(self._out, 0)
            self._position = 0

    def _keep(self, **changes: object) -> None:
        self._sent = self._sent.model_copy(update=changes)
        _replace(self.folder / _SENT, self._sent.model_dump_json())


def unsent(folder: Path, outbox: Line | None = None) -> int:
    """Entries in a spool's folder that have not been sent, with those of a line that may be on its way there."""
    sent, lines = _load_sent(folder), _read(folder)
    if outbox is not None and outbox.number > _last_number(sent, lines):
        lines.append(outbox)
    return sum(line.number > sent.reached(entry.run) for line in lines for entry in line.entries)


def files_to_send(folder: Path) -> list[Path]:
    """The files that lines of a study's folder speak of, sent or not."""
    entries = (entry for line in _read(folder / SPOOL) for entry in line.entries)
    return [Path(entry.path) for entry in entries if isinstance(entry, File)]


def _last_number(sent: _Sent, lines: Sequence[Line]) -> int:
    return max([sent.number, *sent.ahead.values(), *(line.number for line in lines)])


def _read(folder: Path) -> list[Line]:
    """All whole lines, each once."""
    path = folder / _LINES
    if not path.exists():
        return []
    found: dict[int, Line] = {}
    for text in path.read_bytes().splitlines():
        try:
            line = Line.model_validate_json(text)
        except ValueError:
            continue  # cut off
        found.setdefault(line.number, line)
    return list(found.values())


def _load_sent(folder: Path) -> _Sent:
    path = folder / _SENT
    if path.exists():
        return _Sent.model_validate_json(path.read_text())
    sent = _Sent(study_id=uuid.uuid4().hex)
    if folder.exists():
        _replace(path, sent.model_dump_json())
    return sent


def _load_runs(folder: Path) -> dict[str, str]:
    path = folder / _RUNS
    return _IDS.validate_json(path.read_text()) if path.exists() else {}


def _replace(path: Path, text: str) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
