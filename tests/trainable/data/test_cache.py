from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trainable
from trainable.config import DataConfig
from trainable.data import cache, opened
from trainable.data.cache import Arrays
from trainable.data.content import content_key
from trainable.data.decoded import Decoded, build, load
from trainable.data.store import open_dataset
from trainable.errors import DataError
from trainable.places import cache_folder

Make = Callable[..., DataConfig]


def decoded(count: int = 5, *, keep: bool = True) -> Decoded:
    rng = np.random.default_rng(0)
    return Decoded(
        labels=np.arange(count, dtype=np.int64),
        sums=rng.integers(0, 99, (count, 3)),
        squares=rng.integers(0, 99, (count, 3)),
        hashes=rng.integers(0, 2**60, count).astype(np.uint64),
        shape=(3, 5, 7),
        pixels=rng.integers(0, 256, (count, 3, 5, 7), dtype=np.uint8) if keep else None,
    )


def never() -> Decoded:
    raise AssertionError("decoded although the cache holds it")


@pytest.mark.parametrize("keep", [True, False])
def test_what_was_written_is_read(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "new folder" / "x.arrow"
    assert load(path) is None
    built, written = build(path, lambda: decoded(keep=keep)), decoded(keep=keep)
    for found in (built, load(path), build(path, never)):
        assert found is not None
        assert found.shape == (3, 5, 7)
        for name in ("labels", "sums", "squares", "hashes", "pixels"):
            assert np.array_equal(getattr(found, name), getattr(written, name))
            assert found.pixels is None or not found.pixels.flags.writeable


def test_pixels_are_mapped_not_copied(tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "x.arrow"
    build(path, lambda: decoded(20_000))
    before = pa.total_allocated_bytes()
    found = load(path)
    assert found is not None
    assert found.pixels is not None
    assert not found.pixels.flags.owndata
    assert pa.total_allocated_bytes() - before < 100_000


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_made_again(tmp_path: Path, caplog, share: float) -> None:
    path = tmp_path / "x.arrow"
    build(path, decoded)
    os.truncate(path, int(path.stat().st_size * share))
    with caplog.at_level(logging.WARNING):
        assert load(path) is None
    assert "cannot be used" in caplog.text
    build(path, decoded)
    assert load(path) is not None


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    build(path, decoded)
    content = bytearray(path.read_bytes())
    at = content.find(decoded().pixels.tobytes())  # type: ignore[union-attr]
    content[at + 100] ^= 4
    path.write_bytes(content)
    assert load(path) is None


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> Decoded:
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        build(tmp_path / "x.arrow", fail)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    build(tmp_path / "x.arrow", decoded)


@pytest.mark.slow
def test_a_column_of_more_than_two_gigabytes_is_kept(tmp_path: Path) -> None:
    """Features of a teacher are; Arrow would refuse one of so many numbers."""
    rows = 2**31 // 4096 + 1
    zeros = np.zeros((rows, 4096), np.uint8)
    zeros[-1, -1] = 7

    def parse(arrays: Arrays) -> tuple[int, int]:
        return len(arrays.columns["a"]), int(arrays.columns["a"][-1, -1])

    path = tmp_path / "a.arrow"
    assert cache.build(path, parse, lambda: Arrays({"a": zeros}, {})) == (rows, 7)
    assert cache.load(path, parse) == (rows, 7)


def test_what_is_refused_leaves_no_file_nor_does_a_process_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    (tmp_path / ".a.arrow.0123").write_bytes(b"half")

    def refuse(arrays: Arrays) -> None:
        raise ValueError(f"of {len(arrays.columns)}")

    with pytest.raises(ValueError, match="of 1"):
        cache.build(path, refuse, lambda: Arrays({"a": np.zeros(3)}, {}))
    assert [file.name for file in tmp_path.iterdir()] == ["a.lock"]


def test_a_folder_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set KD_STUDY_CACHE to another folder"):
        build(tmp_path / "file" / "x.arrow", decoded)


OPEN = """
import sys, time
from pathlib import Path
from trainable.config import DataConfig
from trainable.data import opened
from trainable.data.store import open_dataset

def decode_slowly(pictures, rows, *, keep, decode_rows=opened.decode_rows):
    print("decoding", flush=True)
    time.sleep(0.5)
    return decode_rows(pictures, rows, keep=keep)

opened.decode_rows = decode_slowly
config, cache, start = DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
print("ready", flush=True)
while not Path(start).exists():
    time.sleep(0.005)
print(open_dataset(config, cache).train.images([0, 1, 2]).sum(), flush=True)
"""


def test_two_processes_that_open_a_new_set_decode_it_once(
    parquet_set: Make, cache: Path, tmp_path: Path
) -> None:
    config, start = parquet_set(), tmp_path / "start"
    command = [sys.executable, "-W", "error", "-c", OPEN, config.model_dump_json(), cache, start]
    environment = os.environ | {"PYTHONPATH": str(Path(trainable.__file__).parents[1])}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.stdout.readline() for p in processes] == ["ready\n"] * 2  # type: ignore[union-attr]
    start.touch()
    output = [p.communicate(timeout=60)[0].split() for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert sorted(len(words) for words in output) == [1, 2]
    assert output[0][-1] == output[1][-1]


def test_the_key_covers_what_changes_the_pixels(parquet_set: Make, cache: Path) -> None:
    config = parquet_set()
    variants = [
        config,
        config.model_copy(update={"channels": 1}),
        config.model_copy(update={"image_size": 4}),
    ]
    for variant in variants:
        open_dataset(variant, cache)
    assert len(list((cache / "data").glob("*.arrow"))) == 3
    open_dataset(config.model_copy(update={"val_fraction": 0.25, "batch_size": 2}), cache)
    assert len(list((cache / "data").glob("*.arrow"))) == 3


def test_another_format_is_another_key(parquet_set: Make, cache: Path, monkeypatch) -> None:
    config = parquet_set()
    open_dataset(config, cache)
    monkeypatch.setattr(opened, "FORMAT", "next")
    open_dataset(config, cache)
    assert len(list((cache / "data").glob("*.arrow"))) == 2


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KD_STUDY_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("KD_STUDY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "kd-study"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "kd-study"


def test_a_content_key_is_remembered_for_files_left_alone(tmp_path: Path) -> None:
    file, cache = tmp_path / "a", tmp_path / "cache"
    file.write_bytes(b"one")
    settled_ns = time.time_ns() - 10**10
    os.utime(file, ns=(settled_ns, settled_ns))
    key = content_key(tmp_path, [file], cache)
    (memo,) = (cache / "hashes").iterdir()
    memo.write_text("f" * 32)
    assert content_key(tmp_path, [file], cache) == "f" * 32
    file.write_bytes(b"two")
    assert content_key(tmp_path, [file], cache) not in (key, "f" * 32)
    assert len(list((cache / "hashes").iterdir())) == 1, "a file just written is not remembered"
