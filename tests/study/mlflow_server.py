"""An MLflow server on this machine, which can be stopped and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running_server(folder: Path, database: str | None = None) -> Generator[MlflowServer]:
    """A server that runs in this block, unless it is stopped there."""
    server = MlflowServer(folder, database)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class MlflowServer:
    """A server with a folder of artifacts, and a SQLite store unless it is given another database's address."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        self._folder, self._log = folder, folder / "server.log"
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.database = database or f"sqlite:///{folder}/server.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", self.database]
        command += ["--artifacts-destination", f"{self._folder}/artifacts"]
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.2)
        pytest.fail(f"mlflow server did not start:\n{self._log.read_text()}")

    def stop(self) -> None:
        """Kill it with all its processes: nothing that it was doing comes to an end."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
