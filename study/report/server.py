"""MLflow's own pages of an embedded store, served on this machine while a person looks at them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import IO

import sqlalchemy

from trainable.errors import InputError, KdStudyError, input_error

HOST = "127.0.0.1"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for jobs that nobody gives it
}
_PATIENCE_S = 120.0
_GRACE_S = 10.0
_SHOWN_LINES = 5


class ServerError(KdStudyError):
    """MLflow's server did not start, or ended by itself."""


def serve(uri: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the store until Ctrl-C or SIGTERM; `ready` is given the server's address once it answers.

    Raises InputError if there is no such store or the port is taken, and ServerError with MLflow's last
    lines if it ends by itself.
    """
    _check_store(uri)
    _check_port(port)
    address = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1"]
    # Not as an argument: it may have a password, and all users see arguments.
    environment = {**_ENVIRONMENT, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryFile("w+") as log:
        # In a session of its own: Ctrl-C reaches this process alone, which then ends all of MLflow's.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            _wait_until_healthy(address, process, log)
            ready(address)
            process.wait()
            raise ServerError(f"mlflow ui ended by itself:\n{_last_lines(log)}")
        except KeyboardInterrupt:
            return
        finally:
            _end(process)
            signal.signal(signal.SIGTERM, before)


def _check_store(uri: str) -> None:
    """A missing SQLite file would be made, and be empty."""
    url = sqlalchemy.make_url(uri)
    if url.get_backend_name() == "sqlite" and not os.path.isfile(url.database or ""):
        rule, remedy = "must hold an MLflow store", "run a study, or name its --storage"
        raise input_error(InputError, "--storage", rule, remedy, url.database)


def _check_port(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            remedy = f"stop what listens there, or give another, e.g. --port {port + 1}"
            raise input_error(InputError, "--port", "must be free", remedy, port) from None


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: IO[str]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise ServerError(f"mlflow ui did not start:\n{_last_lines(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _last_lines(log: IO[str]) -> str:
    log.seek(0)
    return "\n".join(log.read().splitlines()[-_SHOWN_LINES:])
