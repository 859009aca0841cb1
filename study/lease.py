"""Who drives a study whose storage is a bucket: a file there, which its driver renews.

S3's conditional writes cannot be had through pyarrow, so who wants the study writes its own name, waits, and looks
whose is there. A driver that was cut off while another took the study finds out the next time it wants to keep
anything, and keeps nothing. Between that look and the write lie milliseconds, which nothing guards.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from trainable.bucket import Bucket
from trainable.errors import ConfigError, KdStudyError, input_error

_LEASE = "lease.json"
RENEWED_S = 10.0
"""A driver renews its lease as often, or a little later."""
_EXPIRED_S = 60.0
"""A lease that nobody has renewed for so long is nobody's."""
_SETTLED_S = 2.0
"""Longer than it takes to read a lease and to write another."""
_LOOK_S = 0.5


class LostLeaseError(KdStudyError):
    """Another driver has taken the study."""


class _Holder(BaseModel):
    """What the file says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str
    """Of one driver, which no other has had."""
    renewed: int = 0
    """How often."""
    process: str
    """On which running system, in which of its name spaces, and which process: see `_this_process`."""
    host: str


class Lease:
    """One driver's hold of a study, in its part of a bucket."""

    def __init__(self, bucket: Bucket, study: str, expired_s: float = _EXPIRED_S) -> None:
        self._bucket, self._study, self._expired_s = bucket, study, expired_s
        self._holder = _Holder(
            owner=uuid4().hex, process=_this_process(os.getpid()), host=socket.gethostname()
        )
        self._written = 0.0

    def take(self) -> None:
        """Hold the study; ConfigError if another driver does, or comes at the same moment."""
        seen = time.monotonic()
        before = self._read()
        if before is not None and not _has_died(before):
            seen = self._wait_for_end_of(before)
        self._write()
        if time.monotonic() - seen > _SETTLED_S:
            time.sleep(RENEWED_S)  # for who found it free meanwhile to see that it is not
        time.sleep(_SETTLED_S)
        if not self._is_ours():
            raise self._refused(self._read())

    def renew(self) -> None:
        """Look whether it still is this driver's, and say from time to time that it lives; LostLeaseError."""
        if not self._is_ours():
            holder = self._read()
            by = "nobody" if holder is None else f"a driver on {holder.host}"
            raise LostLeaseError(f"the study is no longer this driver's: {by} holds it")
        if time.monotonic() - self._written >= RENEWED_S:
            self._write()

    def release(self) -> None:
        """Leave the study to others."""
        if self._is_ours():
            self._bucket.remove(self._name)

    @property
    def _name(self) -> str:
        return f"{self._study}/{_LEASE}"

    def _read(self) -> _Holder | None:
        text = self._bucket.read(self._name)
        return None if text is None else _Holder.model_validate_json(text)

    def _write(self) -> None:
        self._holder = self._holder.model_copy(update={"renewed": self._holder.renewed + 1})
        self._bucket.put(self._name, self._holder.model_dump_json().encode())
        self._written = time.monotonic()

    def _is_ours(self) -> bool:
        holder = self._read()
        return holder is not None and holder.owner == self._holder.owner

    def _wait_for_end_of(self, holder: _Holder) -> float:
        """Until a lease has not changed for so long that it is nobody's; when that was looked at last."""
        until = time.monotonic() + self._expired_s
        while True:
            time.sleep(_LOOK_S)
            seen = time.monotonic()
            now = self._read()
            if now is not None and now != holder:
                raise self._refused(now)
            if now is None or seen > until:
                return seen

    def _refused(self, holder: _Holder | None) -> ConfigError:
        by = "" if holder is None else f" on {holder.host}"
        rule, remedy = (
            f"another kd-study is at work on it{by}",
            "wait for it, or choose another name",
        )
        error = input_error(ConfigError, "study.name", rule, remedy, self._study)
        assert isinstance(error, ConfigError)
        return error


def _this_process(pid: int) -> str:
    """Names a process of this machine such that no other has had the name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    # What follows the name of the program, which may hold anything: the 22nd field is when it started.
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot} {os.readlink('/proc/self/ns/pid')} {pid} {started}"


def _has_died(holder: _Holder) -> bool:
    """Whether the driver ran on this machine and is gone; of another machine that cannot be known."""
    system, _, process = holder.process.rpartition("] ")
    if not _this_process(os.getpid()).startswith(f"{system}] "):
        return False
    try:
        return _this_process(int(process.split()[0])) != holder.process
    except FileNotFoundError:
        return True
