"""A Ray cluster whose jobs are submitted from outside, and `kd-study submit` as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.study.mlflow_server import free_port

OUTSIDE = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
"""The environment of somebody who is not connected to any cluster."""
_NOTHING: Mapping[str, str] = {}
_RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@contextmanager
def running_cluster(
    env: Mapping[str, str] = _NOTHING, *, cpus: int = 2, gcs_port: int | None = None
) -> Generator[str]:
    """A cluster of one node, started as `ray start` does; the value is its dashboard's address.

    Its folder has a short name: Ray's sockets lie in it, and their paths are bounded. Other nodes join
    it at `gcs_port`.
    """
    folder, port = tempfile.mkdtemp(prefix="ray-", dir="/tmp"), free_port()
    command = [*_RAY, "start", "--head", "--block", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
    command += ["--node-ip-address=127.0.0.1", f"--port={gcs_port or free_port()}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    command += [f"--ray-client-server-port={free_port()}"]
    quiet = subprocess.DEVNULL
    head = subprocess.Popen(
        command, env=OUTSIDE | env, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield _when_it_answers(f"http://127.0.0.1:{port}", head)
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _when_it_answers(address: str, head: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 90
    while head.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=5):
                return address
        except urllib.error.HTTPError:
            return address  # it asks for a token
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"no cluster at {address}")


def submitting(*arguments: object, env: Mapping[str, str] = _NOTHING) -> subprocess.Popen[str]:
    """Start `kd-study submit`, in a process group of its own, as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "study", "submit", *map(str, arguments)],
        env=OUTSIDE | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def submit(*arguments: object, env: Mapping[str, str] = _NOTHING) -> tuple[int, str, str]:
    """Run `kd-study submit` to its end: its exit code, what it printed, and what on stderr."""
    with submitting(*arguments, env=env) as process:
        stdout, stderr = process.communicate(timeout=240)
    return process.returncode, stdout, stderr


def ray_job_submit(
    folder: Path, address: str, *entrypoint: str
) -> subprocess.CompletedProcess[str]:
    """Ray's own command, as docs/clusters.md has it."""
    command = [*_RAY, "job", "submit", "--address", address, "--working-dir", str(folder)]
    command += ["--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}']
    command += ["--", *entrypoint]
    return subprocess.run(command, env=OUTSIDE, capture_output=True, text=True, timeout=240)
