"""A PostgreSQL server on this machine, from Debian's packages."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.study.mlflow_server import free_port

_OWNER = "postgres"
"""Who runs the server where the tests run as root, which it refuses."""


class Postgres:
    """A cluster of its own in a folder that is removed when it stops; only loopback reaches it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._port = free_port()
        self.uri = f"postgresql+psycopg://{_OWNER}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Make the cluster, start it, and wait until it answers."""
        if os.geteuid() == 0:
            owner = pwd.getpwnam(_OWNER)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        data = self._folder / "data"
        self._run("initdb", "-D", data, "-U", _OWNER, "--auth", "trust", "--no-sync")
        self.start_again()

    def make_database(self, name: str) -> str:
        """Another database of the server; its address."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", _OWNER, name)
        return f"{self.uri.rpartition('/')[0]}/{name}"

    def start_again(self) -> None:
        """After a crash: it recovers from its log, and answers."""
        data, log = self._folder / "data", self._folder / "log"
        settings = f"-h 127.0.0.1 -p {self._port} -k {self._folder} -F"
        self._run("pg_ctl", "-D", data, "-l", log, "-o", settings, "-w", "start")

    def crash(self) -> None:
        """End all its processes at once: what they were doing is lost, and nobody is told."""
        self._run("pg_ctl", "-D", self._folder / "data", "-m", "immediate", "-w", "stop")

    def stop(self) -> None:
        """End it at once, and remove its folder."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self.crash()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [str(_program(program)), *map(str, arguments)]
        if os.geteuid() == 0:
            command = [
                "setpriv",
                f"--reuid={_OWNER}",
                f"--regid={_OWNER}",
                "--clear-groups",
                *command,
            ]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
        if done.returncode:
            pytest.fail(f"{program}: {done.stdout}{done.stderr}")


def _program(name: str) -> Path:
    """Debian keeps the server's programs off the PATH, by version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not found:
        pytest.fail(f"{name} is not installed: apt-get install postgresql")
    return found[-1]
