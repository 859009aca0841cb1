"""Where a trial's process leaves work for a group of workers, and hears what becomes of it.

An actor of Ray, in a process that imports nothing heavy.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ended:
    """All workers have done a piece of work."""

    result: Any
    """What it gave on rank 0."""


class Broken:
    """The group is gone."""


class Desk:
    """One piece of work at a time, done by all workers together; its reports are those of rank 0."""

    def __init__(self, workers: int) -> None:
        self._workers, self._done = workers, 0
        self._result: Any = None
        self._work, self._answer = _Slot(), _Slot()
        self._news = asyncio.Queue[Any]()
        self._closed = asyncio.Event()

    async def begin(self, work: list[Any]) -> None:
        """Have the workers do `work`: a reference to it, in a list. They have ended what was before."""
        self._answer = _Slot()
        await self._work.put(work)

    async def news(self) -> Any:
        """The next report, or Ended, or Broken."""
        return await self._news.get()

    async def answer(self, goes_on: bool) -> None:
        """Whether the work goes on after its last report."""
        await self._answer.put(goes_on)

    async def close(self) -> None:
        """Send the workers away, whatever they do."""
        self._closed.set()

    async def breaks(self) -> None:
        """Nobody will work any more."""
        self._news.put_nowait(Broken())

    async def closed(self) -> None:
        """For a worker: returns when it is to leave."""
        await self._closed.wait()

    async def work(self, number: int) -> list[Any]:
        """For a worker: the piece of work of this number, counted from 1."""
        return await self._work.get(number)

    async def report(self, rank: int, number: int, report: Any) -> bool:
        """For a worker: tell the work's report of this number, counted from 1, and whether to go on."""
        if rank == 0:
            self._news.put_nowait(report)
        return await self._answer.get(number)

    async def end(self, rank: int, result: Any) -> None:
        """For a worker: its part is done."""
        self._done += 1
        self._result = result if rank == 0 else self._result
        if self._done == self._workers:
            self._done = 0
            self._news.put_nowait(Ended(self._result))


class _Slot:
    """The last of a series of values, for those who wait for it."""

    def __init__(self) -> None:
        self._number, self._value = 0, None
        self._changed = asyncio.Condition()

    async def put(self, value: Any) -> None:
        async with self._changed:
            self._number, self._value = self._number + 1, value
            self._changed.notify_all()

    async def get(self, number: int) -> Any:
        """The value of this number, counted from 1; it must not have been replaced."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._number >= number)
            return self._value
