"""What a driver writes down of a study, in an order in which one that dies can be followed.

The ledger is written first, with what MLflow is to be told in it, and only then the spool. What is in the spool
is sent when a driver on another machine would find it, too.
"""

from __future__ import annotations

import errno
import os
import shlex
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from study.config import StudyConfig
from study.entries import Entry, Line
from study.folder import LOG
from study.ledger import LEDGER, Ledger
from study.mirror import Mirror
from study.results import StudyResults
from study.spool import SPOOL
from study.writer import Remains

PATIENCE_S = 60.0
"""How long a study waits in its end for MLflow to take what it was not told yet."""
HURRY_S = 2.0
"""The same for a study that is stopped: what stopped it may kill it three seconds later."""
REST_S = 3600.0
"""The same for who came back to have the rest sent: a large file takes its time, and Ctrl-C ends it."""
_SOON_S = 1.0
"""Whoever waits longer is told why."""


class Outlet(Protocol):
    """Takes lines for MLflow without delay, and sends them when it can; see `study.writer`."""

    @property
    def runs(self) -> Mapping[str, str]: ...
    @property
    def last_number(self) -> int: ...
    def add(self, line: Line) -> None: ...
    def release(self, number: int) -> None: ...
    def drain(self, patience_s: float) -> Remains: ...


class Listener(Protocol):
    """Shows a person why there is a wait."""

    def phase(self, text: str) -> None: ...
    def message(self, text: str) -> None: ...


class Books:
    """The ledger of one study, and what MLflow is told of it."""

    def __init__(
        self, config: StudyConfig, results: StudyResults, outlet: Outlet, mirror: Mirror
    ) -> None:
        self._config, self._outlet, self.mirror = config, outlet, mirror
        self.results = results
        """What is known by now."""
        self._ledger = Ledger(config.folder / LEDGER)
        self._is_kept = False
        """Whether this driver has written the ledger."""
        self._before = results.seconds
        self._opened = time.monotonic()

    def seconds(self) -> float:
        """Wall time of the study, without the time between two drivers."""
        return self._before + time.monotonic() - self._opened

    def save(self, results: StudyResults, told: list[Entry] | None = None) -> None:
        """Write the ledger with what MLflow is told in it, and only then the spool."""
        path = self._config.folder / LEDGER
        if self._is_kept and not path.exists():  # another folder in its place must not be written
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._hand_over()  # of a driver, or a call, that was cut short
        update: dict[str, Any] = {"seconds": self.seconds(), "changes": results.changes + 1}
        if told:
            line = Line(number=self._outlet.last_number + 1, entries=tuple(told))
            update["outbox"] = line
        self.results = results.with_run_ids(self._outlet.runs).model_copy(update=update)
        self._ledger.add(self.results)
        self._is_kept = True
        self._hand_over()

    def keep(self) -> None:
        """Returns when a driver on another machine would find all that was told until now."""
        self.mirror.keep(self._release())

    def keep_soon(self) -> None:
        """As `keep`, without the wait."""
        self.mirror.keep_soon(self._release())

    def settle(self, listener: Listener, patience_s: float) -> None:
        """Wait for MLflow to take the rest, and say it if it does not; Ctrl-C ends the waiting."""
        self._hand_over()
        self.keep()
        remains = self._outlet.drain(_SOON_S)
        if remains.unsent:
            listener.phase(f"waiting up to {patience_s:g} s for MLflow")
            remains = self._outlet.drain(patience_s - _SOON_S)
        self.results = self.results.with_run_ids(self._outlet.runs)
        self._ledger.write(self.results)
        if remains.unsent or remains.refused:
            listener.message(_words(remains, self._config))

    def _release(self) -> Callable[[], None]:
        """What was told until now may be sent to MLflow."""
        return partial(self._outlet.release, self._outlet.last_number)

    def _hand_over(self) -> None:
        if self.results.outbox is not None:
            self._outlet.add(self.results.outbox)


def _words(remains: Remains, config: StudyConfig) -> str:
    said: list[str] = []
    folder, again = config.folder, "the same command"
    if remains.unsent:
        if config.bucket is None:
            resume = ["kd-study", "resume", config.study.name, "--storage", config.storage.path]
            again = f"`{shlex.join(resume)}`"
        where = f"kept in {folder / SPOOL}; {again} sends them"
        said.append(f"{remains.unsent} entries could not be sent to MLflow and are {where}")
    if remains.refused:
        said.append(f"MLflow refused {remains.refused} values, which {folder / LOG} names")
    return "; ".join(said)
