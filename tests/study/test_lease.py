"""One driver at a time on a study in a bucket: here a folder, with the same words."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import study.lease
from study.lease import Lease, LostLeaseError
from trainable.bucket import Bucket
from trainable.errors import ConfigError

NAME = "s/lease.json"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.lease, "_SETTLED_S", 0.2)
    monkeypatch.setattr(study.lease, "RENEWED_S", 0.0)
    monkeypatch.setattr(study.lease, "_LOOK_S", 0.1)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket((tmp_path / "bucket").as_uri())


def on_another_machine(bucket: Bucket) -> None:
    """As if the holder's process were none of this machine's."""
    holder = json.loads(bucket.read(NAME) or b"")
    holder["process"] = "another-boot pid:[1] 1 1"
    bucket.put(NAME, json.dumps(holder).encode())


def renew_for(lease: Lease, seconds: float) -> threading.Thread:
    def work() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            lease.renew()
            time.sleep(0.1)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_study_is_held_until_it_is_left(bucket: Bucket) -> None:
    one = Lease(bucket, "s")
    one.take()
    one.renew()
    Lease(bucket, "other").take()
    one.release()
    assert bucket.read(NAME) is None
    Lease(bucket, "s").take()


def test_a_driver_that_lives_keeps_the_study(bucket: Bucket) -> None:
    one = Lease(bucket, "s")
    one.take()
    thread = renew_for(one, 3.0)
    with pytest.raises(ConfigError, match=r"^study\.name: another kd-study is at work on it on "):
        Lease(bucket, "s").take()
    thread.join()
    one.renew()


def test_a_driver_elsewhere_that_is_silent_for_too_long_loses_it(bucket: Bucket) -> None:
    one, other = Lease(bucket, "s"), Lease(bucket, "s", expired_s=1.0)
    one.take()
    on_another_machine(bucket)
    began = time.monotonic()
    other.take()
    assert time.monotonic() - began > 1.0
    with pytest.raises(LostLeaseError, match="no longer this driver's: a driver on "):
        one.renew()
    one.release()
    other.renew()  # which is not the first one's to leave


def test_a_driver_that_died_on_this_machine_is_not_waited_for(
    bucket: Bucket, tmp_path: Path
) -> None:
    take = f"""
import study.lease
from study.lease import Lease
from trainable.bucket import Bucket
study.lease._SETTLED_S = 0.1
Lease(Bucket({bucket.uri!r}), "s").take()
"""
    subprocess.run([sys.executable, "-c", take], check=True, timeout=60)
    assert bucket.read(NAME) is not None
    began = time.monotonic()
    Lease(bucket, "s").take()
    assert time.monotonic() - began < 30


def test_of_two_at_the_same_moment_one_at_most_gets_it(bucket: Bucket) -> None:
    refused: list[ConfigError] = []
    held: list[Lease] = []

    def take(lease: Lease) -> None:
        try:
            lease.take()
            held.append(lease)
            while len(refused) < 3:
                lease.renew()
                time.sleep(0.05)
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=(Lease(bucket, "s"),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)
    held[0].renew()
