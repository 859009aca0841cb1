"""What a driver has here is kept elsewhere as it was at one moment, and brought back to any place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import study.lease
from study.curves import CURVE, add_epoch
from study.entries import File, Line, Points
from study.fetching import bring_back
from study.lease import Lease
from study.ledger import LEDGER, find_results, save_results
from study.mirror import BucketMirror, KeepingError
from study.results import StudyResults, TrialRow, place_of
from study.spool import SPOOL, Spool
from trainable.bucket import Bucket, BucketError
from trainable.records import EpochRecord


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr(study.lease, "_SETTLED_S", 0.1)
    return Bucket((tmp_path / "bucket").as_uri())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "one" / "s"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def mirror(bucket: Bucket, folder: Path) -> Iterator[BucketMirror]:
    lease = Lease(bucket, "s")
    lease.take()
    with BucketMirror(bucket, folder, lease) as mirror:
        yield mirror


def ledger_of(folder: Path, epochs: int) -> StudyResults:
    place = str(folder / "trials" / "0000")
    return StudyResults(
        name="s",
        trials_planned=1,
        started_at=0.0,
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        experiment="e",
        parent_run_id="p",
        rows=(TrialRow(role="trial", number=0, epochs=epochs, directory=place),),
    )


def points(number: int) -> Line:
    entry = Points(run="trial 0", metrics={"a": 0.5}, step=number, time_ms=number)
    return Line(number=number, entries=(entry,))


def test_a_study_is_brought_back_elsewhere_with_its_places(
    mirror: BucketMirror, bucket: Bucket, folder: Path, tmp_path: Path
) -> None:
    save_results(ledger_of(folder, 2), folder / LEDGER)
    (folder / "optuna.journal").write_text("one\ntwo\n")
    (folder / "optuna.journal.lock").touch()
    (folder / "results.tmp").write_text("half")
    (folder / "trials" / "0000").mkdir(parents=True)
    for epoch in (1, 2):
        add_epoch(folder / "trials" / "0000", EpochRecord(epoch, {"val/accuracy": 0.5}, epoch))
    best = folder / "trials" / "0000" / "best.safetensors"
    best.write_bytes(b"weights")
    mirror.give(best)  # as its trial does
    with Spool(folder / SPOOL) as spool:
        spool.add(points(1))
        told = File(run="trial 0", path=str(best), folder="checkpoint")
        spool.add(Line(number=2, entries=(told,)))
        mirror.keep()
    root = tmp_path / "other"
    (root / "s").mkdir(parents=True)
    (root / "s" / "of last week").touch()
    assert bring_back(bucket, "s", root)
    assert find_results(root, "s") == ledger_of(root / "s", 2)
    assert (root / "s" / "optuna.journal").read_text() == "one\ntwo\n"
    there = {str(p.relative_to(root / "s")) for p in (root / "s").rglob("*") if p.is_file()}
    spooled = {f"{SPOOL}/{name}" for name in ("lines.jsonl", "sent.json")}
    trial = {f"trials/0000/{name}" for name in (CURVE, "best.safetensors")}
    assert there == {LEDGER, "optuna.journal", *spooled, *trial}
    with Spool(root / "s" / SPOOL) as spool:
        moved = told.model_copy(update={"path": str(root / "s" / "trials/0000/best.safetensors")})
        assert spool.read(9) == [points(1), Line(number=2, entries=(moved,))]
    assert not bring_back(bucket, "nobody", root)


@pytest.mark.parametrize(
    "place",
    [
        place_of("teacher", 0),
        place_of("trial", 3),
        place_of("replicate", 0, "trial 3"),
        place_of("baseline", 2, "kd"),
    ],
    ids=str,
)
def test_the_curve_of_whatever_was_trained_is_brought_back(
    mirror: BucketMirror, bucket: Bucket, folder: Path, tmp_path: Path, place: Path
) -> None:
    save_results(ledger_of(folder, 1), folder / LEDGER)
    (folder / place).mkdir(parents=True)
    add_epoch(folder / place, EpochRecord(1, {"val/accuracy": 0.5}, 1))
    mirror.keep()
    assert bring_back(bucket, "s", tmp_path / "other")
    curve = (tmp_path / "other" / "s" / place / CURVE).read_bytes()
    assert curve == (folder / place / CURVE).read_bytes()


def test_what_is_given_is_kept_once(
    mirror: BucketMirror, bucket: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder.parent / "teachers" / "a.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    put, lost = Bucket.put, list[str]()

    def losing(self: Bucket, name: str, content: Path | bytes) -> None:
        if not lost:
            lost.append(name)
            raise BucketError("the bucket is away")
        put(self, name, content)

    monkeypatch.setattr(Bucket, "put", losing)
    with pytest.raises(BucketError):
        mirror.give(weights)
    mirror.give(weights)
    assert bucket.read(lost[0]) == b"weights"
    monkeypatch.setattr(Bucket, "put", None)
    mirror.give(weights)


def test_what_waits_for_it_comes_after_it_is_kept(
    mirror: BucketMirror, bucket: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.json").write_text("1")
    happened: list[str] = []
    put = Bucket.put

    def putting(self: Bucket, name: str, content: Path | bytes) -> None:
        put(self, name, content)
        happened.append(name)

    monkeypatch.setattr(Bucket, "put", putting)
    (folder / "report.html").write_text("page")
    mirror.keep(lambda: happened.append("then"))
    assert happened == ["s/report.html", "s/driver.zip", "then"]
    mirror.keep(lambda: happened.append("then"))  # nothing is new
    assert happened[3:] == ["then"]


def test_who_does_not_wait_is_not_held_up(
    mirror: BucketMirror, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, put = threading.Event(), Bucket.put

    def putting(self: Bucket, name: str, content: Path | bytes) -> None:
        gate.wait(30)
        put(self, name, content)

    monkeypatch.setattr(Bucket, "put", putting)
    done: list[int] = []

    def noting(number: int) -> Callable[[], None]:
        return lambda: done.append(number)

    for number in range(3):
        (folder / "a.json").write_text(str(number))
        mirror.keep_soon(noting(number))
    assert done == []
    gate.set()
    mirror.keep(noting(3))
    assert done[-1] == 3
    assert 1 not in done  # the first was on its way


def test_a_trial_is_forgotten_once_it_is_kept_that_it_is_over(
    mirror: BucketMirror, bucket: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1):
        for name in (
            "checkpoints/000000010/manifest.json",
            "best.safetensors",
            "statistics.parquet",
        ):
            bucket.put(f"s/trials/{number:04d}/{name}", b"")
    before: list[list[str]] = []
    put = Bucket.put

    def putting(self: Bucket, name: str, content: Path | bytes) -> None:
        before.append(bucket.names("s/trials"))
        put(self, name, content)

    monkeypatch.setattr(Bucket, "put", putting)
    (folder / "a.json").write_text("both are over")
    mirror.forget(folder / "trials" / "0000", keep_best=True)
    mirror.forget(folder / "trials" / "0001", keep_best=False)
    mirror.keep()
    assert [len(names) for names in before] == [6]
    left = ["0000/best.safetensors", "0000/statistics.parquet", "0001/statistics.parquet"]
    assert bucket.names("s/trials") == [f"s/trials/{name}" for name in left]


def test_a_driver_that_lost_its_study_keeps_nothing_more(
    bucket: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.mirror.RENEWED_S", 0.1)
    lease = Lease(bucket, "s")
    lease.take()
    with BucketMirror(bucket, folder, lease) as mirror:
        (folder / "a.json").write_text("1")
        mirror.keep()
        kept = bucket.read("s/driver.zip")
        bucket.remove("s/lease.json")
        Lease(bucket, "s").take()
        (folder / "a.json").write_text("2")
        with pytest.raises(KeepingError, match="no longer this driver's"):
            mirror.keep()
        with pytest.raises(KeepingError, match="the same command goes on from what is kept"):
            mirror.keep_soon(lambda: None)
    assert bucket.read("s/driver.zip") == kept
    assert bucket.read("s/lease.json") is not None  # the other's


def test_a_driver_that_could_not_bring_all_back_leaves_it_as_it_is(
    bucket: Bucket, folder: Path
) -> None:
    bucket.put("s/driver.zip", b"as it was")
    lease = Lease(bucket, "s")
    lease.take()
    with BucketMirror(bucket, folder, lease):
        (folder / "config.yaml").write_text("half")
    assert bucket.read("s/driver.zip") == b"as it was"


def test_a_driver_that_waits_for_a_long_epoch_still_renews_its_lease(
    bucket: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.mirror.RENEWED_S", 0.1)
    monkeypatch.setattr("study.lease.RENEWED_S", 0.1)
    lease = Lease(bucket, "s")
    lease.take()
    with BucketMirror(bucket, folder, lease):
        before = bucket.read("s/lease.json")
        time.sleep(1.0)
        assert bucket.read("s/lease.json") not in (before, None)
    assert bucket.read("s/lease.json") is None
