"""Where a node keeps things: its cache, and a folder in it for each bucket that it works for."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

BUCKETS = ("s3://", "gs://")
"""What the URI of a bucket starts with: Amazon S3 and what speaks its language, Google Cloud Storage."""


def cache_folder() -> Path:
    """`$KD_STUDY_CACHE`, else `$XDG_CACHE_HOME/kd-study`, else `~/.cache/kd-study`."""
    own = os.environ.get("KD_STUDY_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache").absolute() / "kd-study"


def is_bucket(place: str) -> bool:
    """Whether a place is in a bucket, and no folder."""
    return place.startswith(BUCKETS)


def within(place: str, name: str) -> str:
    """The place called `name` in a folder or bucket; what follows a URI's `?` stays its end."""
    base, mark, options = place.partition("?") if is_bucket(place) else (place, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def working_folder(storage: str) -> Path:
    """Where this node reads and writes what is kept at `storage`: there, or for a bucket in its cache."""
    if not is_bucket(storage):
        return Path(storage)
    key = hashlib.blake2b(storage.encode(), digest_size=8).hexdigest()
    return cache_folder() / "buckets" / key
