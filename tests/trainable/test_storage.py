"""What is said of a disk that cannot be written, whoever was writing."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from trainable.errors import StorageError
from trainable.storage import is_full, writing_to

# A file of more than a kilobyte is refused to this process, as one is to whoever has no room.
LIMITED = """
import resource, signal, sys
from pathlib import Path
import safetensors.torch, torch
from trainable.errors import StorageError
from trainable.storage import writing_to

folder, tensors = Path(sys.argv[1]), {"a": torch.zeros(10_000)}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
for write in (
    lambda: torch.save(tensors, folder / "state.pt"),
    lambda: safetensors.torch.save_file(tensors, folder / "student.safetensors"),
    lambda: (folder / "lines.txt").write_text("x" * 10_000),
):
    try:
        with writing_to(folder):
            write()
    except StorageError as error:
        print(error)
"""


def test_every_kind_of_file_that_finds_no_room_is_told_in_the_same_words(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(f"{tmp_path}: must take the study's files (")
        assert " GiB free; make room there, or bring the folder back, and run the same" in line
    assert "File too large" in lines[2]


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    said = r"\(No such file or directory: .*gone/x\), got no such"
    with pytest.raises(StorageError, match=said), writing_to(gone):
        (gone / "x").write_text("")
    with pytest.raises(StorageError), writing_to(gone):
        torch.save({}, gone / "x")
    with pytest.raises(StorageError), writing_to(gone):
        safetensors.torch.save_file({"a": torch.zeros(1)}, gone / "x")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/x"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        RuntimeError("shapes differ"),
    ],
)
def test_other_errors_come_out_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, writing_to(tmp_path):
        raise error
    assert raised.value is error


def test_what_is_full() -> None:
    assert is_full(OSError(errno.ENOSPC, "full"))
    assert is_full(OSError(errno.EDQUOT, "quota"))
    assert not is_full(OSError(errno.EACCES, "not ours"))
    assert not is_full(ValueError("full"))
