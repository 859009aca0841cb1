"""What `kd-study submit` says of addresses and places, and one job of a real cluster."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from study.cli import _app
from study.yaml import dump_yaml
from tests.integration.jobs import running_cluster

CONFIG = {
    "study": {"name": "s"},
    "data": {"source": "digits"},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "none"},
    "search": {"optim.lr": {"loguniform": [1e-4, 1e-1]}},
    "storage": {"path": "/shared/runs"},
}
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(CONFIG))
    return path


def submit(*arguments: object) -> Result:
    return CliRunner().invoke(_app, ["submit", *map(str, arguments)])


def refused(*arguments: object) -> str:
    """The only line of what is refused."""
    result = submit(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


@contextmanager
def answering(status: int, text: str) -> Generator[str]:
    """A server that says the same to everybody; the value is its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("auto", "must begin with http:// or https://, got 'auto'"),
        ("127.0.0.1:8265", "must begin with http:// or https://, got '127.0.0.1:8265'"),
        (NOWHERE, "must be the dashboard of a running Ray cluster, but: Connection refused"),
        ("http://", "must begin with http:// or https://, got 'http:'"),
        ("http://[::1", "must be the dashboard of a running Ray cluster, but: Invalid IPv6 URL"),
        ("http://h:x", "must be the dashboard of a running Ray cluster, but: nonnumeric port"),
    ],
)
def test_addresses_that_cannot_be(config: Path, address: str, words: str) -> None:
    assert refused(config, "--address", address).startswith(f"--address: {words}")


@pytest.mark.parametrize(
    ("status", "text"), [(200, "<html>"), (200, "[]"), (200, '{"version": "3"}'), (404, "")]
)
def test_servers_of_something_else(config: Path, status: int, text: str) -> None:
    with answering(status, text) as address:
        line = refused(config, "--address", address)
    assert line.startswith("--address: must be the dashboard of a running Ray cluster, but: ")
    assert f"got '{address}'" in line


def test_a_server_that_says_nothing_is_not_waited_for(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.submit._PATIENCE_S", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        line = refused(config, "--address", f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert "running Ray cluster, but: timed out, got" in line


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_missing(config: Path, status: int) -> None:
    with answering(status, "no") as address:
        line = refused(config, "--address", address)
    assert line.startswith("--address: asks for a token, and must be given the right one, got ")
    assert "RAY_AUTH_MODE=token" in line


def test_places_of_this_machine_are_refused_before_the_cluster_is_asked(config: Path) -> None:
    changed = ["data={source: cifar10, root: data}", "storage.path=~/runs", "optim.lr=-1"]
    result = submit(config, "--address", NOWHERE, *(p for s in changed for p in ("--set", s)))
    lines = result.stderr.splitlines()
    assert (result.exit_code, len(lines)) == (2, 3)
    assert lines[0].startswith("optim.lr: ")
    assert lines[1] == (
        "storage.path: must be an absolute path, the same on all nodes of the cluster, "
        "got '~/runs'; e.g. --set storage.path=/shared/runs"
    )
    assert lines[2].startswith("data.root: must be an absolute path")
    missing = refused(config, "--address", NOWHERE, "--set", "storage={}")
    assert missing.startswith("storage.path: must be an absolute path")
    assert "got nothing; e.g. --set storage.path=/shared/runs" in missing
    optuna = refused(config, "--address", NOWHERE, "--set", "storage.optuna=sqlite:///optuna.db")
    assert optuna == (
        "storage.optuna: must have an absolute path, which has a fourth slash, "
        "got 'sqlite:///optuna.db'; e.g. sqlite:////shared/optuna.db"
    )


def test_what_contradicts_itself_is_refused(config: Path) -> None:
    line = refused(config, "--address", NOWHERE, "--stop", "--status")
    assert line.startswith("--status: ")
    line = refused(config, "--address", NOWHERE, "--set", "search={}")
    assert line.startswith("search: ")


def test_a_job_of_a_real_cluster(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a cluster without kd-study, where it ends at once; Ray would rather ask RAY_ADDRESS."""
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
    with running_cluster({"PATH": "/usr/bin:/bin"}) as address:
        none = refused(config, "--address", address, "--status")
        assert none.startswith("study.name: has no job at")
        result = submit(config, "--address", address)
        assert result.exit_code == 1
        told = result.stdout.splitlines()
        assert told[0].startswith("s-")
        assert ": pending since " in told[0]
        assert any(line.endswith(": kd-study run config.yaml") for line in told)
        assert ": failed at " in told[-1]
        assert result.stderr.startswith("the head node has no kd-study on its PATH: ")
        asked = submit(config, "--address", address, "--status")
        assert asked.exit_code == 0
        assert asked.stdout.splitlines()[-1] == told[-1]
        ended = refused(config, "--address", address, "--stop")
        assert ended.startswith("study.name: has no job that runs, got ")
