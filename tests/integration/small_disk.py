"""A file system of a few MiB in a namespace of its own, which needs no rights: it can be full, or unwritable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from study.config import StudyConfig, dump_config
from tests.integration.driving import ALONE


class SmallDisk:
    """A disk at `folder` that those see who `run` in its namespace, and this process below `root`."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder = folder
        mount = f"mount -t tmpfs -o size={mib}m tmpfs {folder} && echo ready && exec sleep infinity"
        self._holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", mount],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        if (said := self._holder.stdout.readline()) != "ready\n":
            pytest.skip(f"users may not mount file systems here: {said.strip()}")
        self.root = Path(f"/proc/{self._holder.pid}/root") / folder.relative_to("/")

    def run(self, *command: str) -> str:
        """A command's output."""
        done = subprocess.run([*self._enter(), *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, config: StudyConfig) -> subprocess.Popen[str]:
        """`kd-study run`, in a process group of its own."""
        self.run("sh", "-c", f"mkdir -p {config.storage.path}")
        path = self.folder.parent / "config.yaml"
        path.write_text(dump_config(config))
        return subprocess.Popen(
            [*self._enter(), sys.executable, "-m", "study", "run", str(path)],
            env=ALONE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def fill(self) -> None:
        """Leave no byte on it."""
        with (self.root / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"0" * 4096)
            except OSError:
                return

    def make_room(self) -> None:
        (self.root / "filler").unlink()

    def take_away(self) -> None:
        """An empty folder is in its place, as where a file system is not mounted."""
        self.run("mount", "-t", "tmpfs", "tmpfs", str(self.folder))

    def bring_back(self) -> None:
        self.run("umount", "--lazy", str(self.folder))

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()

    def _enter(self) -> list[str]:
        namespace = ["nsenter", "-t", str(self._holder.pid), "-U", "-m", "--preserve-credentials"]
        return [*namespace, f"--wd={os.getcwd()}"]


@contextmanager
def small_disk(folder: Path, mib: int) -> Generator[SmallDisk]:
    """Mounted at `folder` for this block."""
    folder.mkdir()
    disk = SmallDisk(folder, mib)
    try:
        yield disk
    finally:
        disk.close()
