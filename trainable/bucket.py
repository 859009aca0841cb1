"""Files in a bucket of S3 or Google Cloud Storage, through pyarrow's file systems.

A file is there whole or not at all. Every call tries again while the bucket does not answer. Where it is and
who may use it is found as pyarrow finds it: in the URI's own options, in the variables of AWS (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, …) and their files, or from the machine's role.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pyarrow import fs

from trainable.errors import KdStudyError

PATIENCE_S = 600.0
"""How long a bucket may be away before what needs it fails."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0
_CHUNK = 2**22
_REASON_CHARACTERS = 500

_T = TypeVar("_T")


class BucketError(KdStudyError):
    """A bucket does not answer, or refuses."""


class Bucket:
    """The files whose names begin with what a URI says; names in it are relative, with slashes."""

    def __init__(self, uri: str, patience_s: float = PATIENCE_S) -> None:
        """`file:///folder` will do as well, which is a folder."""
        self.uri, self._patience_s = uri, patience_s

    def put(self, name: str, content: Path | bytes) -> None:
        """Write a file in place of the one of this name."""
        self._trying(lambda: self._put(name, content))

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None if there is none."""
        return self._trying(lambda: self._read(name))

    def fetch(self, name: str, destination: Path) -> bool:
        """Bring a file here, whole, in place of what is there; whether the bucket has it."""
        return self._trying(lambda: self._fetch(name, destination))

    def copy(self, name: str, other: str) -> None:
        """Give a file's bytes another name, too, without having them here."""
        self._trying(lambda: self._files.copy_file(self._path(name), self._path(other)))

    def names(self, under: str = "") -> list[str]:
        """The names of all files in a folder of the bucket, in order; none where there is no such folder."""
        return self._trying(lambda: self._names(under))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._trying(lambda: self._remove(name))

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return fs.FileSystem.from_uri(self.uri)

    @property
    def _files(self) -> Any:
        """Untyped, as pyarrow is."""
        return self._opened[0]

    def _path(self, name: str) -> str:
        return f"{self._opened[1].rstrip('/')}/{name}".rstrip("/")

    def _put(self, name: str, content: Path | bytes) -> None:
        path = self._path(name)
        if isinstance(self._files, fs.LocalFileSystem):
            _put_here(Path(path), content if isinstance(content, bytes) else content.read_bytes())
            return
        # Opened first: without it an empty file would be written.
        source = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
        with source, self._files.open_output_stream(path) as out:
            while chunk := source.read(_CHUNK):
                out.write(chunk)

    def _read(self, name: str) -> bytes | None:
        try:
            with self._as_it_is(name) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _fetch(self, name: str, destination: Path) -> bool:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_name(f".{destination.name}.{uuid4().hex}.tmp")
        try:
            with self._as_it_is(name) as file, temporary.open("wb") as to:
                while chunk := file.read(_CHUNK):
                    to.write(chunk)
            temporary.replace(destination)
        except FileNotFoundError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    @contextmanager
    def _as_it_is(self, name: str) -> Generator[Any]:
        """A file to read, in several requests; OSError if it was replaced between them."""
        with self._files.open_input_stream(self._path(name)) as file:
            yield file
            with self._files.open_input_stream(self._path(name)) as now:
                if now.metadata() != file.metadata():
                    raise OSError(f"{name} was replaced while it was read")

    def _names(self, under: str) -> list[str]:
        selector = fs.FileSelector(self._path(under), allow_not_found=True, recursive=True)
        top = f"{self._path('')}/"
        found = [info.path for info in self._files.get_file_info(selector) if info.is_file]
        return sorted(path.removeprefix(top) for path in found)

    def _remove(self, name: str) -> None:
        try:
            self._files.delete_file(self._path(name))
        except FileNotFoundError:
            return

    def _trying(self, act: Callable[[], _T]) -> _T:
        """What `act` gives, tried again until the patience is at its end: then BucketError says why."""
        until, wait = time.monotonic() + self._patience_s, _FIRST_WAIT_S
        while True:
            try:
                return act()
            except (OSError, ValueError) as error:
                if time.monotonic() + wait > until:
                    reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
                    raise BucketError(f"{self.uri} cannot be used: {reason}") from error
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)


def _put_here(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
