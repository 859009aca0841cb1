"""The content key of a set of files: what is in them, not when they were written."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainable.data.cache import replace_file
from trainable.data.faults import data_error
from trainable.places import cache_folder

_CHUNK = 1 << 20
_SETTLED_S = 2.0


def content_key(base: Path, files: Sequence[Path], cache: Path | None) -> str:
    """BLAKE2b (128 bits, hex) of each file's path below `base`, its size and its bytes, in order.

    Reading all bytes costs about 1 s a GB, so that the key is remembered in the cache folder under
    the files' paths, sizes and modification times in ns: a later call with the same files only
    looks at those. Files modified within the last 2 s are not remembered, since another change
    could leave their time as it is. DataError for a file that is not there.
    """
    stats = [_stat(file) for file in files]
    signature = hashlib.blake2b(os.fsencode(base), digest_size=16)
    for file, stat in zip(files, stats, strict=True):
        signature.update(os.fsencode(file.relative_to(base)))
        signature.update(b"\0%d\0%d\0" % (stat.st_size, stat.st_mtime_ns))
    memo = (cache or cache_folder()) / "hashes" / signature.hexdigest()
    if memo.is_file() and len(known := memo.read_text(encoding="ascii")) == 32:
        return known
    key = _hash_files(base, files)
    newest_ns = max((stat.st_mtime_ns for stat in stats), default=0)
    if time.time_ns() - newest_ns > _SETTLED_S * 1e9:
        with replace_file(memo) as temporary:
            temporary.write_text(key, encoding="ascii")
    return key


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except FileNotFoundError as error:  # it was listed
        remedy = "repair it, or remove it from the data set"
        raise data_error(str(file), "must not be a link that leads nowhere", remedy) from error


def combine(*parts: str) -> str:
    """One hex key of several texts; every text and every boundary between them matters."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part.encode()))
        digest.update(part.encode())
    return digest.hexdigest()


def _hash_files(base: Path, files: Sequence[Path]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    with ThreadPoolExecutor() as pool:
        for file, digest in zip(files, pool.map(_hash_file, files), strict=True):
            whole.update(os.fsencode(file.relative_to(base)))
            whole.update(b"\0%d\0" % file.stat().st_size)
            whole.update(digest)
    return whole.hexdigest()


def _hash_file(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.digest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
