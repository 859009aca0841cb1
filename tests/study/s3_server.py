"""A server on this machine that speaks S3's language (moto's), behind a line that can be cut."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.study.mlflow_server import free_port

BUCKET = "kd-study-tests"


@contextmanager
def running_s3(folder: Path, *, knows_nobody: bool = False) -> Generator[S3Server]:
    """A server with one empty bucket that runs in this block; it may refuse whatever credentials it is given."""
    server = S3Server(folder, knows_nobody=knows_nobody)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class S3Server:
    """A process that keeps objects in memory, and a port that leads there unless it is cut."""

    def __init__(self, folder: Path, *, knows_nobody: bool) -> None:
        # After the first request, which makes the bucket, moto looks for the users that it has.
        self._environment = os.environ | (
            {"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if knows_nobody else {}
        )
        self._log, self._port, self._front = folder / "s3.log", free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self.uri = f"s3://{BUCKET}/studies"
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._front}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start, wait until it answers, and make the bucket."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            address = f"http://127.0.0.1:{self._port}/{BUCKET}"
            try:
                with urllib.request.urlopen(urllib.request.Request(address, method="PUT")):
                    self.mend()
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        pytest.fail(f"moto's server did not start:\n{self._log.read_text()}")

    def stop(self) -> None:
        """Kill it: what it holds is gone."""
        self.cut()
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def cut(self) -> None:
        """From now on connections are refused, and those that there are end."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # who waits there for connections ends
            self._listener.close()
            self._listener = None
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Have the port lead to the server (again)."""
        self._listener = socket.create_server(("127.0.0.1", self._front), backlog=64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._open |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(2**16):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._open.discard(end)
