"""A thread that sends a study's spool to MLflow, whatever becomes of the store in the meantime.

The driver adds a line to a file and goes on. The thread takes the oldest run's entries, as many as go
into one call, so that a backlog is sent in full batches; while the store is away it waits, longer from
try to try. What the store would never take is dropped, counted, and said in the study's log.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from study.entries import Entry, Line, Opening, together
from study.spool import Spool, unsent
from study.tracking import (
    VALUES_A_CALL,
    Refusal,
    Tracker,
    is_outage,
    is_refusal,
    refusal_of,
)

_LINES_AHEAD = 20_000
"""Lines in memory at most: full batches of 400 runs at once, or some 50 MB."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0
_SHORT_WAIT_S = 1.0
"""Longest wait when somebody waits for the end, or when the store answers and yet fails."""
_STUBBORN = 5
"""After so many failures of a store that answers, an entry is tried alone once more, and then dropped."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remains:
    """What a study could not tell MLflow."""

    unsent: int
    """Entries that are still in the spool."""
    refused: int
    """Values that the store would never take."""


class Writer:
    """Sends a spool's lines while it is entered."""

    def __init__(self, spool: Spool, tracker: Tracker) -> None:
        self._spool, self._tracker = spool, tracker
        self._queues: dict[str, deque[tuple[int, Entry]]] = {}
        self._failures = self._puzzles = 0
        self._news, self._hurry, self._over = (threading.Event() for _ in range(3))
        self._emptied = threading.Condition()
        self._has_ended = False
        self._thread = threading.Thread(target=self._work, name="mlflow writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for event in (self._over, self._hurry, self._news):
            event.set()
        self._thread.join(_SHORT_WAIT_S)  # longer if it waits for an answer, which it will not use

    @property
    def runs(self) -> Mapping[str, str]:
        """MLflow's id of each run that is known, by label."""
        return self._spool.runs

    @property
    def last_number(self) -> int:
        """Of the last line that is kept."""
        return self._spool.last_number

    def add(self, line: Line) -> None:
        """Keep a line, to be sent soon; one that is known already adds nothing."""
        self._spool.add(line)
        self._news.set()

    def release(self, number: int) -> None:
        """Lines up to this one may be sent; for who holds them back by `Spool.released`."""
        self._spool.released = number
        self._news.set()

    def drain(self, patience_s: float) -> Remains:
        """Give what is there so long to be sent, and hurry from now on; Ctrl-C ends the waiting."""
        self._hurry.set()
        with contextlib.suppress(KeyboardInterrupt), self._emptied:
            self._emptied.wait_for(lambda: self._has_ended or self._spool.is_empty, patience_s)
        return Remains(unsent(self._spool.folder), self._spool.refused)

    def _work(self) -> None:
        try:
            self._send_all()
        except Exception:  # a full disk, say: all is in the spool, and said to be so in the end
            _LOG.exception("no more can be sent to MLflow by this driver")
        finally:
            with self._emptied:
                self._has_ended = True
                self._emptied.notify_all()

    def _send_all(self) -> None:
        while not self._over.is_set():
            self._news.clear()
            self._fetch()
            if self._queues:
                self._serve()
            else:
                self._spool.empty()
                with self._emptied:
                    self._emptied.notify_all()
                self._news.wait()

    def _fetch(self) -> None:
        """Take lines from the file while there is room."""
        room = _LINES_AHEAD - sum(map(len, self._queues.values()))
        for line in self._spool.read(room):
            for entry in line.entries:
                if line.number > self._spool.reached(entry.run):
                    self._queues.setdefault(entry.run, deque()).append((line.number, entry))

    def _serve(self) -> None:
        """Send the first entries of the run that has waited longest."""
        run, queue = min(self._queues.items(), key=lambda item: item[1][0][0])
        limit = VALUES_A_CALL if self._puzzles < _STUBBORN else 1
        batch = together((entry for _, entry in queue), limit)
        try:
            refused = self._send(run, queue[0][0], batch)
        except Exception as error:
            refused = self._fail(batch, error)
            if refused is None:
                return
        if self._over.is_set():
            return
        self._failures = self._puzzles = 0
        for one in refused:
            self._spool.count_refused(one.values)
            _LOG.warning("MLflow never took of %s: %s (%s)", run, one.what, one.reason)
        self._forget(run, len(batch))

    def _send(self, run: str, number: int, batch: Sequence[Entry]) -> list[Refusal]:
        first, runs = batch[0], self._spool.runs
        if isinstance(first, Opening):
            may_be_there = number <= self._spool.inherited or self._failures > 0
            run_id = runs.get(run) or self._tracker.open_run(first, may_be_there=may_be_there)
            self._spool.name_runs({run: run_id})
            return []
        if run not in runs:
            return [refusal_of(batch, "its run could not be opened")]
        return self._tracker.send(runs[run], batch)

    def _fail(self, batch: Sequence[Entry], error: Exception) -> list[Refusal] | None:
        """Wait before the next try; what is given up, if it is."""
        if is_refusal(error):
            return [refusal_of(batch, error)]
        wait = min(_FIRST_WAIT_S * 2 ** min(self._failures, 9), _LONGEST_WAIT_S)
        self._failures += 1
        if not is_outage(error) and self._tracker.answers():
            self._puzzles += 1
            if self._puzzles > _STUBBORN:
                return [refusal_of(batch, error)]
            wait = min(wait, _SHORT_WAIT_S)
        if self._hurry.is_set():
            self._over.wait(min(wait, _SHORT_WAIT_S))
        else:
            self._hurry.wait(wait)
        return None

    def _forget(self, run: str, count: int) -> None:
        """The first entries of a run are sent, or given up."""
        queue = self._queues[run]
        number = [queue.popleft() for _ in range(count)][-1][0]
        is_whole = not queue or queue[0][0] > number
        self._spool.mark(run, number if is_whole else number - 1)
        if not queue:
            del self._queues[run]
