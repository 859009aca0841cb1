"""A study whose storage is a bucket: what its driver has here is kept there, for a driver on another machine.

What it goes on from is kept as it was at one moment, between two steps of Tune, when nothing is half told: once a
second, if the bucket is as fast, and before each trial begins. MLflow is told of nothing that is not kept yet, and a
trial keeps each checkpoint before it reports. So a driver that finds an empty folder, or one of last week, brings
back what the bucket has (`study.fetching`), and goes on as one that was killed at that moment: trials report once
more what they had reported since, from their checkpoints.
"""

from __future__ import annotations

import io
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from zipfile import ZIP_DEFLATED, ZipFile

from study.config import StudyConfig
from study.curves import CURVE
from study.fetching import ARTIFACTS, ROOT, STATE, STORE, bring_back, check_bucket, is_beside
from study.lease import RENEWED_S, Lease
from study.report.links import PAGE
from study.report.trials_file import TRIALS
from study.spool import FILES
from trainable import tasks
from trainable.bucket import Bucket
from trainable.errors import KdStudyError

Then = Callable[[], None]


def _nothing() -> None:
    pass


class KeepingError(KdStudyError):
    """What the driver has cannot be kept: the bucket is away for too long, or another driver has the study."""


class Mirror(Protocol):
    """Where the driver's files are kept beside its folder."""

    def keep(self, then: Then = _nothing) -> None:
        """Keep what there is: `then` is called, and this returns, when a driver elsewhere would find it."""
        ...

    def keep_soon(self, then: Then) -> None:
        """As `keep`, without waiting, and not while the last is still on its way. KeepingError of an earlier one."""
        ...

    def bring(self, path: Path) -> None:
        """Have a file of the study here as it is kept, if it is, and if another node may have made it."""
        ...

    def give(self, path: Path) -> None:
        """Keep a file that is not the driver's own and never changes, unless it is kept."""
        ...

    def forget(self, trial: Path, *, keep_best: bool) -> None:
        """A trial that is over needs no checkpoint there any more, nor its best student unless that is to stay."""
        ...


class NoMirror:
    """Of a folder that all nodes see: what is written there is kept, and nothing waits for it."""

    def keep(self, then: Then = _nothing) -> None:
        pass

    def keep_soon(self, then: Then) -> None:
        pass

    def bring(self, path: Path) -> None:
        pass

    def give(self, path: Path) -> None:
        pass

    def forget(self, trial: Path, *, keep_best: bool) -> None:
        pass


@contextmanager
def mirrored(config: StudyConfig) -> Generator[Mirror]:
    """Drive the study in this block, with its folder as it is kept, and keep it in the end.

    ConfigError if the bucket cannot be used, or another driver is at work on it.
    """
    if config.bucket is None:
        yield NoMirror()
        return
    check_bucket(config.storage.path)
    bucket = Bucket(config.storage.path)
    lease = Lease(bucket, config.study.name)
    lease.take()
    with BucketMirror(bucket, config.folder, lease) as mirror:
        bring_back(bucket, config.study.name, config.root)
        yield mirror


@dataclass(frozen=True)
class _Wish:
    """What is to be kept, and what comes after it."""

    files: Mapping[str, bytes]
    """By name in the study's folder."""
    then: Then
    over: Mapping[Path, bool]
    """Trials to be forgotten, and whether their best students stay."""


class BucketMirror:
    """A thread that keeps what the driver has in a bucket, and renews its lease, while it is entered."""

    def __init__(self, bucket: Bucket, folder: Path, lease: Lease) -> None:
        """`folder` is called like the study."""
        self._bucket, self._folder, self._lease = bucket, folder, lease
        self._changed = threading.Condition()
        self._waiting: _Wish | None = None
        self._asked = self._kept = 0
        self._is_over = False
        self._failure: Exception | None = None
        self._last: Mapping[str, bytes] = {}
        self._beside: dict[Path, tuple[int, int]] = {}
        self._forgotten: dict[Path, bool] = {}
        """Trials to be forgotten, and whether their best students stay."""
        self._thread = threading.Thread(target=self._live, name="mirror", daemon=True)

    def __enter__(self) -> BucketMirror:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            # Who has kept nothing may have brought back half of what there is.
            if self._failure is None and self._asked:
                self.keep()
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
            self._thread.join()
        if self._failure is None:
            self._lease.release()

    def keep(self, then: Then = _nothing) -> None:
        number = self._ask(then)
        with self._changed:
            self._changed.wait_for(lambda: self._kept >= number or self._failure is not None)
        self._must_work()

    def keep_soon(self, then: Then) -> None:
        self._must_work()
        with self._changed:
            is_idle = self._kept == self._asked
        if is_idle:
            self._ask(then)

    def bring(self, path: Path) -> None:
        self._bucket.fetch(self._name(path), path)

    def give(self, path: Path) -> None:
        name = self._name(path)
        if name not in self._bucket.names(self._name(path.parent)):
            self._bucket.put(name, path)

    def forget(self, trial: Path, *, keep_best: bool) -> None:
        """Not before it is kept that the trial is over: the next driver would begin it anew."""
        self._forgotten[trial] = keep_best

    def _ask(self, then: Then) -> int:
        """Have the files as they are now kept; the driver must not be writing them. The number of the wish."""
        files = _driver_files(self._folder)
        with self._changed:
            over = self._waiting.over if self._waiting is not None else {}
            # A later wish has all that an earlier one has.
            self._waiting = _Wish(files, then, {**over, **self._forgotten})
            self._forgotten = {}
            self._asked += 1
            self._changed.notify_all()
            return self._asked

    def _live(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._waiting is not None or self._is_over, RENEWED_S
                    )
                    wish, self._waiting, number = self._waiting, None, self._asked
                    if wish is None and self._is_over:
                        return
                self._lease.renew()
                if wish is not None:
                    self._keep(wish)
                with self._changed:
                    self._kept = number
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _keep(self, wish: _Wish) -> None:
        """What the state speaks of is kept before it: the store has all that the spool has sent."""
        if (files := wish.files) != self._last:
            for path in filter(self._has_changed, _files_beside(self._folder)):
                self._keep_beside(path)
            self._bucket.put(self._name(self._folder / STATE), _packed(files, self._folder.parent))
            self._last = files
        wish.then()
        for trial, keep_best in wish.over.items():
            tasks.clear_kept(self._bucket, self._name(trial), keep_best=keep_best)

    def _keep_beside(self, path: Path) -> None:
        if path.name != STORE:
            self._bucket.put(self._name(path), path)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / STORE
            with closing(sqlite3.connect(path)) as store, closing(sqlite3.connect(copy)) as other:
                store.backup(other)
            self._bucket.put(self._name(path), copy)

    def _has_changed(self, path: Path) -> bool:
        found = path.stat()
        before, now = self._beside.get(path), (found.st_size, found.st_mtime_ns)
        self._beside[path] = now
        return before != now

    def _must_work(self) -> None:
        if self._failure is not None:
            raise KeepingError(
                f"{self._failure}; the same command goes on from what is kept"
            ) from self._failure

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder.parent))


def _driver_files(folder: Path) -> Mapping[str, bytes]:
    """What a driver goes on from, by name in its folder; the spool's in the order that a writer at work allows."""
    top = (path for path in folder.glob("[!.]*") if path.is_file() and path.suffix not in _PASSING)
    names = [*FILES, *sorted(path.name for path in top if not is_beside(Path(path.name)))]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


_PASSING = (".tmp", ".lock", ".db-journal", ".db-wal", ".db-shm")


def _files_beside(folder: Path) -> Iterator[Path]:
    """What else the driver has written, each kept by itself."""
    curves = (f"*/{CURVE}", f"*/*/{CURVE}", f"*/*/*/{CURVE}")  # as deep as `place_of` has them
    for pattern in (PAGE, TRIALS, *curves, f"{ARTIFACTS}/**/*", STORE):
        yield from (path for path in folder.glob(pattern) if path.is_file())


def _packed(files: Mapping[str, bytes], root: Path) -> bytes:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in {**files, ROOT: str(root).encode()}.items():
            archive.writestr(name, content)
    return buffer.getvalue()
