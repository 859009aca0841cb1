"""A GPU that several trials share, and what becomes of one that finds no memory left.

A trial that ran out of memory beside others cannot know whose fault it was: its neighbours' peaks come and go. So it
goes on once more from its last checkpoint, alone on the GPU: it waits until those beside it have ended, and who comes
later waits for it. Out of memory then is its own fault. So a trial begins twice at most, and none is waited for twice.
Other work on the GPU, such as a network's score, is done again in the same way.

Locks on two files of the node say who is there; the kernel takes those of a process that died.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO, TypeVar

import torch

from trainable.engine.failures import memory_explained
from trainable.engine.loop import Report, TrialTask, run
from trainable.engine.mirror import mirror_of
from trainable.errors import OutOfMemoryError
from trainable.records import NOTES

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


class SharedGpu:
    """A GPU of this node on which several trials may run at a time."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        """`name` is the same in all of this user's processes on this GPU, which meet in `folder`."""
        self._folder = folder or Path(tempfile.gettempdir()) / f"kd-study-{os.getuid()}"
        self._name = name

    @contextmanager
    def beside_others(self) -> Generator[None]:
        """Be one of several in this block; waits for one that is, or waits to be, alone."""
        with self._locked("gate", fcntl.LOCK_EX):
            held = self._open("trials")
            fcntl.flock(held, fcntl.LOCK_SH)
        with held:
            yield

    @contextmanager
    def alone(self) -> Generator[None]:
        """Be the only one in this block; waits for those that are there, and nobody comes in the meantime."""
        with self._locked("gate", fcntl.LOCK_EX), self._locked("trials", fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, kind: str, how: int) -> Generator[None]:
        with self._open(kind) as file:
            fcntl.flock(file, how)
            yield

    def _open(self, kind: str) -> TextIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        return (self._folder / f"{self._name}.{kind}").open("w")


def run_on(gpu: SharedGpu | None, task: TrialTask, report: Report, device: torch.device) -> None:
    """As `loop.run`; on a GPU that it shares once more, alone, if there is no memory left beside the others."""

    def begin_again(reason: str) -> None:
        _note(task.folder, reason)
        mirror_of(task.folder, task.bucket).keep()

    _twice_at_most(gpu, lambda: run(task, report, device), begin_again)


def do_on(
    gpu: SharedGpu | None, work: Callable[[torch.device], Result], device: torch.device, doing: str
) -> Result:
    """`work(device)`, which is no trial; on a GPU that it shares once more, alone, as `run_on`.

    `doing` says what it is.

    Raises:
        OutOfMemoryError: There is no memory for it, though it has the GPU to itself.
    """

    def attempt() -> Result:
        with memory_explained(doing, device):
            return work(device)

    def begin_again(reason: str) -> None:
        _log.warning("once more, alone on the GPU: %s", reason)

    return _twice_at_most(gpu, attempt, begin_again)


def _twice_at_most(
    gpu: SharedGpu | None, attempt: Callable[[], Result], begin_again: Callable[[str], None]
) -> Result:
    """`begin_again` is told why the first attempt, beside others, found no memory, before the second."""
    if gpu is None:
        return attempt()
    found: list[Result] = []
    with gpu.beside_others(), _leaving_nothing():  # before another takes the place
        reason = _out_of_memory(lambda: found.append(attempt()))
    if reason is None:
        return found[0]
    begin_again(reason)
    with gpu.alone(), _leaving_nothing():
        return attempt()


def notes_of(folder: Path) -> tuple[str, ...]:
    """When and why the trial of this folder found no memory beside others, in their order."""
    path = folder / NOTES
    return tuple(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()


@contextmanager
def _leaving_nothing() -> Generator[None]:
    """Give back to the device what was used in this block, however it ends."""
    try:
        yield
    except BaseException as error:
        link: BaseException | None = error
        while link is not None:  # frames hold the trial for as long as somebody holds the error
            traceback.clear_frames(link.__traceback__)
            link = link.__cause__ or link.__context__
        raise
    finally:
        gc.collect()
        with suppress(RuntimeError):  # of a GPU that failed, which would hide what was said of that
            torch.cuda.empty_cache()


def _out_of_memory(attempt: Callable[[], None]) -> str | None:
    """Why it ran out of memory, if it did; the error, and with it all that its frames hold, is gone then."""
    try:
        attempt()
    except OutOfMemoryError as error:
        return str(error)
    return None


def _note(folder: Path, reason: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # which the end of the first epoch makes else
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    with (folder / NOTES).open("a", encoding="utf-8") as file:
        file.write(f"{when} {' '.join(reason.split())}\n")
