"""MLflow stores for the tests of a study: the embedded one, a server, and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from study.store import Store, open_store
from tests.study.mlflow_server import running_server
from tests.study.postgres import Postgres


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server on this machine."""
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server.uri


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A PostgreSQL database's address, and the folder of artifacts beside it."""
    server = Postgres()
    try:
        server.start()
        yield server.uri, tmp_path_factory.mktemp("artifacts")
    finally:
        server.stop()


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The embedded store's address and its folder of artifacts."""
    folder = tmp_path_factory.mktemp("embedded")
    return f"sqlite:///{folder}/mlflow.db", folder / "mlartifacts"


@pytest.fixture(
    params=[
        "embedded",
        *(pytest.param(p, marks=pytest.mark.service) for p in ("server", "postgres")),
    ]
)
def place(request: pytest.FixtureRequest) -> tuple[str, Path | None]:
    """A tracking URI with its artifact root, once of each kind."""
    if request.param == "server":
        return request.getfixturevalue("server"), None
    return request.getfixturevalue(request.param)


@pytest.fixture
def store(place: tuple[str, Path | None], request: pytest.FixtureRequest) -> Store:
    """A store of each kind, with an experiment of the test's own."""
    return open_store(place[0], request.node.name, place[1])


@pytest.fixture
def embedded_store(embedded: tuple[str, Path], request: pytest.FixtureRequest) -> Store:
    """The embedded store, with an experiment of the test's own."""
    return open_store(embedded[0], request.node.name, embedded[1])


@pytest.fixture
def client(place: tuple[str, Path | None]) -> MlflowClient:
    """Another program that looks at the same store."""
    return MlflowClient(tracking_uri=place[0])
