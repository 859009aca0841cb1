"""What a study takes on disk, also while it is at work."""

from __future__ import annotations

import threading
from pathlib import Path

from study.report.cost import bytes_on_disk


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    empty = bytes_on_disk(tmp_path)
    one = tmp_path / "a" / "b" / "one"
    one.write_bytes(b"x" * 100_000)
    filled = bytes_on_disk(tmp_path)
    assert 100_000 <= filled - empty < 110_000
    (tmp_path / "a" / "two").hardlink_to(one)
    assert bytes_on_disk(tmp_path) == filled


def test_folders_may_go_meanwhile(tmp_path: Path) -> None:
    """As half-written checkpoints do."""
    is_over = threading.Event()

    def write_and_remove() -> None:
        while not is_over.is_set():
            folder = tmp_path / "trial" / ".000000012.tmp"
            folder.mkdir(parents=True)
            (folder / "weights").write_bytes(b"x")
            (folder / "weights").unlink()
            folder.rmdir()

    (tmp_path / "trial").mkdir()
    writer = threading.Thread(target=write_and_remove)
    writer.start()
    try:
        for _ in range(2000):
            bytes_on_disk(tmp_path)
    finally:
        is_over.set()
        writer.join()
