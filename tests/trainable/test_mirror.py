"""A trial's files in a bucket: another node goes on from them, and its own older ones do not mislead it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trainable.trials import CPU, MakeConfig, StoppedError, numbers, train, untrained_teacher
from trainable.bucket import Bucket
from trainable.config import TrialConfig
from trainable.engine.checkpoint import BEST, CHECKPOINTS, MANIFEST, CheckpointFolder
from trainable.engine.loop import TrialTask, run
from trainable.engine.mirror import Mirror
from trainable.networks.blocks import BlockNetwork
from trainable.records import NOTES, STATISTICS, EpochRecord


class Node:
    """A folder that no other node sees."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self.folder = folder
        self.mirror = Mirror(folder, bucket)
        self.checkpoints = CheckpointFolder(folder, CPU)

    def save(self, student: BlockNetwork, update: int, keep: int = 2) -> None:
        self.checkpoints.save(update, student, {"at": update}, {}, is_best=True, keep=keep)
        (self.folder / STATISTICS).write_bytes(f"statistics {update}".encode())
        self.mirror.keep()

    def files(self) -> dict[str, bytes]:
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket((tmp_path / "bucket").as_uri())


def test_what_one_node_keeps_another_has(
    student: BlockNetwork, bucket: Bucket, tmp_path: Path
) -> None:
    one, other = Node(tmp_path / "one", bucket), Node(tmp_path / "other", bucket)
    other.mirror.fetch()
    assert other.files() == {}
    for update in (10, 20, 30):
        one.save(student, update)
    (one.folder / NOTES).write_text("no memory")
    one.mirror.keep()
    other.mirror.fetch()
    assert other.files() == one.files()
    assert sorted(bucket.names()) == sorted(one.files())  # the oldest is gone there, too
    snapshot = other.checkpoints.load()
    assert snapshot is not None
    assert snapshot.shared["at"] == 30


def test_a_note_is_kept_before_there_is_a_checkpoint(bucket: Bucket, tmp_path: Path) -> None:
    one, other = Node(tmp_path / "one", bucket), Node(tmp_path / "other", bucket)
    (one.folder / NOTES).write_text("no memory")
    one.mirror.fetch()
    one.mirror.keep()
    other.mirror.fetch()
    assert other.files() == one.files() == {NOTES: b"no memory"}


def test_what_a_node_has_from_before_gives_way(
    student: BlockNetwork, bucket: Bucket, tmp_path: Path
) -> None:
    one, other = Node(tmp_path / "one", bucket), Node(tmp_path / "other", bucket)
    one.save(student, 10)
    other.mirror.fetch()
    other.save(student, 20, keep=1)
    one.checkpoints.save(15, student, {"at": 15}, {}, is_best=True, keep=2)  # but never kept
    one.mirror.fetch()
    assert one.files() == other.files()


def test_a_checkpoint_without_its_manifest_is_none(
    student: BlockNetwork, bucket: Bucket, tmp_path: Path
) -> None:
    one, other = Node(tmp_path / "one", bucket), Node(tmp_path / "other", bucket)
    one.save(student, 10)
    one.save(student, 20)
    bucket.remove(f"{CHECKPOINTS}/000000020/{MANIFEST}")  # as if its node died while it was kept
    other.mirror.fetch()
    assert [path.name for path in (other.folder / CHECKPOINTS).iterdir()] == ["000000010"]
    other.save(student, 20)
    one.mirror.fetch()
    assert one.files() == other.files()


def test_a_damaged_checkpoint_is_replaced(
    student: BlockNetwork, bucket: Bucket, tmp_path: Path
) -> None:
    one, other = Node(tmp_path / "one", bucket), Node(tmp_path / "other", bucket)
    one.save(student, 10)
    one.save(student, 20)
    bucket.put(f"{CHECKPOINTS}/000000020/{BEST}", b"damaged")
    other.mirror.fetch()
    snapshot = other.checkpoints.load()
    assert snapshot is not None
    assert snapshot.shared["at"] == 10
    other.checkpoints.save(20, student, {"at": -20}, {}, is_best=True, keep=2)
    other.mirror.keep()
    shutil.rmtree(one.folder)
    one.mirror.fetch()
    snapshot = one.checkpoints.load()
    assert snapshot is not None
    assert snapshot.shared["at"] == -20


def test_a_checkpoint_that_a_node_lost_part_of_comes_back(
    student: BlockNetwork, bucket: Bucket, tmp_path: Path
) -> None:
    """Its manifest is whole, as when the power fails before the rest is on the disk."""
    one = Node(tmp_path / "one", bucket)
    one.save(student, 10)
    whole = one.files()
    file = one.folder / CHECKPOINTS / "000000010" / BEST
    file.unlink()  # which may be linked to the best student beside
    file.write_bytes(b"cut")
    one.mirror.fetch()
    assert one.files() == whole


def test_statistics_are_kept_before_the_checkpoint_that_they_belong_to(
    student: BlockNetwork, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that dies between the two leaves too many of them, which are written anew, and not too few."""
    one = Node(tmp_path / "one", bucket)
    put, order = Bucket.put, list[str]()
    monkeypatch.setattr(
        Bucket, "put", lambda self, name, what: (order.append(name), put(self, name, what))[1]
    )
    (one.folder / STATISTICS).write_bytes(b"of this epoch")
    one.save(student, 10)
    assert order[0] == STATISTICS
    assert order[-1].endswith(MANIFEST)


def test_a_trial_goes_on_on_another_node_as_if_nothing_had_been(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(train={"epochs": 3})
    teacher = untrained_teacher(config, tmp_path)
    expected = numbers(train(config, tmp_path / "undisturbed", teacher))

    def on(node: str, stop_at: int) -> list[EpochRecord]:
        bucket = (tmp_path / "bucket").as_uri()
        return reports(config, TrialTask(config, tmp_path / node, teacher, bucket), stop_at)

    first = on("one", stop_at=2)
    second = on("other", stop_at=0)
    assert numbers(second) == expected
    assert second[:2] == first  # those before, as they were, to the millisecond
    bucket = Bucket((tmp_path / "bucket").as_uri())
    best = tmp_path / "other" / BEST
    assert bucket.read(BEST) == best.read_bytes()


def reports(config: TrialConfig, task: TrialTask, stop_at: int) -> list[EpochRecord]:
    """What the trial tells until it dies as it has told of this epoch."""
    found: list[EpochRecord] = []

    def report(record: EpochRecord) -> None:
        found.append(record)
        if record.epoch == stop_at:
            raise StoppedError

    try:
        run(task, report, CPU)
    except StoppedError:
        assert stop_at
    return found
