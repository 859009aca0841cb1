"""Optuna's storage, which may be away for a while: a database that restarts, a file that somebody locks.

What is asked of a storage that is away fails at once with AwayError, and can be asked again: nobody waits in
here, since trials run on meanwhile and the study's loop has to hear of them.
"""

from __future__ import annotations

import os
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from study.config import StudyConfig
from trainable.errors import KdStudyError, Problem

PATIENCE_S = 900.0
"""How long a storage may be away before the study stops."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0
_ANSWER_S = 4
"""How long one try waits for a database to take a connection, or a SQLite file to be unlocked."""
_PATIENCE_OF = {
    "sqlite": "timeout",
    "postgresql": "connect_timeout",
    "mysql": "connect_timeout",
    "mariadb": "connect_timeout",
}
"""What a database's driver calls it."""
_REASON_CHARACTERS = 300

_T = TypeVar("_T")


class OptunaError(KdStudyError):
    """Optuna's storage does not take what it is told."""


class AwayError(OptunaError):
    """Optuna's storage is away for now: ask again."""


def database_problems(config: StudyConfig) -> list[Problem]:
    """What is wrong if the server of `storage.optuna` does not answer now; a SQLite file has none."""
    if config.storage.optuna is None or config.storage.optuna.startswith("sqlite"):
        return []
    try:
        url = make_url(config.storage.optuna)
        engine = sqlalchemy.create_engine(url, **_engine_settings(url))
    except (SQLAlchemyError, ImportError):
        return []  # no such kind of database, as the preflight says
    try:
        engine.connect().close()
    except SQLAlchemyError as error:
        rule = f"must be the URL of a database that answers ({_in_a_line(error)})"
        remedy = "start the database, or correct the URL"
        shown = url.render_as_string(hide_password=True)
        return [Problem("storage.optuna", rule, remedy, repr(shown))]
    finally:
        engine.dispose()
    return []


def open_storage(config: StudyConfig, say: Callable[[str], None]) -> BaseStorage:
    """The config's database, or the journal in the study's folder; `say` hears when it goes and comes back."""
    if config.storage.optuna is None:
        journal = JournalStorage(_Journal(str(config.folder / "optuna.journal")))
        return _AskedAgain(journal, say)
    settings = _engine_settings(make_url(config.storage.optuna))
    try:
        database = RDBStorage(config.storage.optuna, settings)
    except SQLAlchemyError as error:
        reason = _in_a_line(error)
        text = f"Optuna's storage cannot be opened ({reason}); the same command tries again"
        raise OptunaError(text) from error
    return _AskedAgain(get_storage(database), say)


class Outage:
    """Whether a storage is away, since when, and when it is to be asked again."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._since: float | None = None
        self._tries = 0
        self._next_try = 0.0
        self._reason = ""

    def ask(self, call: Callable[[], _T]) -> _T:
        """What the call returns, or raises of its own.

        Raises AwayError if the storage is away, and OptunaError once it has been for PATIENCE_S.
        """
        if self._since is not None and time.monotonic() < self._next_try:
            raise self._away()
        try:
            result = call()
        except Exception as error:
            cause = _outage_in(error)
            if cause is None:
                raise
            self._note(_in_a_line(cause))
            raise self._away() from error
        if self._since is not None:
            self._say(f"Optuna's storage is back after {time.monotonic() - self._since:.0f} s")
            self._since = None
        return result

    def _note(self, reason: str) -> None:
        now, self._reason = time.monotonic(), reason
        if self._since is None:
            self._since, self._tries = now, 0
            self._say(
                f"Optuna's storage is away ({reason}): running trials go on, no new one begins, and it "
                f"is asked again for up to {PATIENCE_S / 60:g} minutes"
            )
        if now - self._since > PATIENCE_S:
            raise OptunaError(
                f"Optuna's storage has been away for {PATIENCE_S / 60:g} minutes ({reason}); "
                "the same command goes on"
            )
        self._next_try = now + min(_FIRST_WAIT_S * 2 ** min(self._tries, 9), _LONGEST_WAIT_S)
        self._tries += 1

    def _away(self) -> AwayError:
        return AwayError(f"Optuna's storage is away ({self._reason}); the same command goes on")


def _asked_again(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.outage.ask(lambda: getattr(self.storage, name)(*args, **kwargs))

    return method


class _Asking:
    """Holds a storage, and whether it is away."""

    def __init__(self, storage: BaseStorage, say: Callable[[str], None]) -> None:
        self.storage, self.outage = storage, Outage(say)


def _define(namespace: dict[str, Any]) -> None:
    for name, value in vars(BaseStorage).items():
        if callable(value) and not name.startswith("_"):
            namespace[name] = _asked_again(name)


_AskedAgain: Callable[[BaseStorage, Callable[[str], None]], BaseStorage] = types.new_class(
    "_AskedAgain", (_Asking, BaseStorage), exec_body=_define
)
"""A storage that passes each of Optuna's calls on to another one, through its `outage`."""


class _Journal(JournalFileBackend):
    """A journal of whole lines: half a one, of a full disk or a dead driver, would spoil the line behind it."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        _cut_half_a_line(Path(self._file_path))
        super().append_logs(logs)


def _cut_half_a_line(path: Path) -> None:
    """FileNotFoundError if the file is gone: a new one in its place would be another journal."""
    with path.open("rb+") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _engine_settings(url: URL) -> dict[str, Any]:
    """No try of a call may hold the study's loop up for long, whatever the driver's own patience."""
    name = _PATIENCE_OF.get(url.get_backend_name())
    patience = {} if name is None or name in url.query else {name: _ANSWER_S}
    return {"pool_pre_ping": True, "connect_args": patience}


def _outage_in(error: Exception) -> BaseException | None:
    """What says that the storage cannot be reached, or written, for now: of an error, or of what led to it."""
    for one in _chain(error):
        lost = isinstance(one, DBAPIError) and one.connection_invalidated
        if lost or isinstance(one, OperationalError | InterfaceError | OSError):
            return one
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _in_a_line(error: BaseException) -> str:
    told = (
        str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)
    )
    return " ".join(told.split())[:_REASON_CHARACTERS]
