"""A bucket's words, against a folder: pyarrow's local file system. Those of S3 are in tests/integration."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from trainable.bucket import Bucket, BucketError
from trainable.places import is_bucket, within, working_folder


def test_files_are_put_read_copied_listed_and_removed(tmp_path: Path) -> None:
    bucket = Bucket((tmp_path / "there").as_uri())
    assert bucket.names() == []
    assert bucket.read("a/one") is None
    assert not bucket.fetch("a/one", tmp_path / "here" / "one")
    (tmp_path / "file").write_bytes(b"x" * 2**23)
    bucket.put("a/one", tmp_path / "file")
    bucket.put("a/b/two", b"2")
    bucket.put("other", b"")
    bucket.copy("a/b/two", "a/three")
    assert bucket.names() == ["a/b/two", "a/one", "a/three", "other"]
    assert bucket.names("a/b") == ["a/b/two"]
    assert (bucket.read("a/three"), bucket.read("other")) == (b"2", b"")
    assert bucket.fetch("a/one", tmp_path / "here" / "one")
    assert (tmp_path / "here" / "one").read_bytes() == (tmp_path / "file").read_bytes()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["one"]
    bucket.remove("a/one")
    bucket.remove("a/one")
    assert bucket.names("a") == ["a/b/two", "a/three"]


def test_a_bucket_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """A file where its folder should be: every call fails until it is gone."""
    obstacle = tmp_path / "there"
    obstacle.touch()

    def clear() -> None:
        time.sleep(0.7)
        obstacle.unlink()

    threading.Thread(target=clear).start()
    bucket = Bucket(obstacle.as_uri())
    bucket.put("a", b"1")
    assert not obstacle.is_file()
    assert bucket.read("a") == b"1"


def test_patience_has_an_end_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    uri = (tmp_path / "there").as_uri()
    with pytest.raises(BucketError, match=r"/there cannot be used: .*(Not a directory|exists)"):
        Bucket(uri, patience_s=0).put("a", b"1")


def test_a_bucket_has_a_folder_in_the_cache_and_a_folder_is_itself(node_cache: Path) -> None:
    assert working_folder("/data/runs") == Path("/data/runs")
    one, other = working_folder("s3://bucket/one"), working_folder("s3://bucket/other")
    assert one != other
    assert one.parent == other.parent == node_cache / "buckets"
    assert [is_bucket(place) for place in ("s3://b/x", "gs://b/x", "/s3:/b", "s3:/b")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_name_within_a_uri_comes_before_its_options() -> None:
    assert within("/data/runs", "a") == "/data/runs/a"
    assert within("s3://bucket/", "a/b") == "s3://bucket/a/b"
    assert (
        within("s3://bucket/x?endpoint_override=h:1", "a")
        == "s3://bucket/x/a?endpoint_override=h:1"
    )
