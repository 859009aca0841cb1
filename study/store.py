"""Where MLflow keeps its runs: finding the store, and an experiment in it, within about ten seconds.

MLflow's global state (active run, tracking URI) is never touched. What its client does when a server
does not answer is set by variables only: it gives up at once unless somebody has set them otherwise,
since who writes tries again by itself.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Before mlflow is imported: it neither reports usage to its makers nor prints links to runs or bars of copied files.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

import sqlalchemy
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from study.secrets import without_passwords
from study.writable import sqlite_problem
from trainable.errors import ConfigError, ExportError, input_error

_REASON_CHARACTERS = 500
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https", "databricks")
_PATIENCE_S = 10


@dataclass(frozen=True)
class Store:
    """A store that has answered, and the experiment in it."""

    client: MlflowClient
    experiment_id: str
    """MLflow's, as in the addresses of its pages."""


def open_store(uri: str, experiment: str, artifact_root: Path | None) -> Store:
    """The store at `uri`, with the experiment made if there is none.

    `uri` is `sqlite:///<absolute path>`, another database that MLflow knows, or a server's address.
    `artifact_root` is the folder of the embedded store's artifacts (each experiment gets a folder
    there); None leaves the place to the server. Raises `ConfigError` if the store cannot be used.
    """
    with must_answer(uri):
        if _scheme(uri) in _DATABASES:
            url = sqlalchemy.make_url(uri)
            if (path := _file_of(url)) is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            _must_connect(url)
        client = _answering_client(uri)
        return Store(client, _ensure_experiment(client, experiment, artifact_root))


def check_store(uri: str, experiment: str) -> None:
    """ConfigError where `open_store` would raise it, as far as that shows without making anything.

    A database is not asked for the experiment: MLflow would make its tables there.
    """
    with must_answer(uri):
        if _scheme(uri) in _SERVERS:
            found = _answering_client(uri).get_experiment_by_name(experiment)
            if found is not None:
                _must_be_active(found)
            return
        url = sqlalchemy.make_url(uri)
        path = _file_of(url)
        if path is None:
            _must_connect(url)
        elif wrong := sqlite_problem(path):
            raise MlflowException(wrong)


@contextmanager
def must_answer(uri: str) -> Generator[None]:
    """In this block, which is to take seconds, a store that fails is a ConfigError."""
    try:
        with _impatient():
            yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = _reason(error)
        rule = f"must be the address of an MLflow store that answers ({reason})"
        remedy = "start the server, correct the address, or remove it to use the study's storage"
        rule, shown = without_passwords(rule), without_passwords(uri)
        raise input_error(ConfigError, "tracking.uri", rule, remedy, shown) from error


@contextmanager
def refused_in_words(uri: str, what: str) -> Generator[None]:
    """In this block, which may take long, a store that fails is an ExportError."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = f"{uri}: must take {what} ({_reason(error)}); correct that, and run the same command again"
        raise ExportError(without_passwords(text)) from error


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:_REASON_CHARACTERS]


def _scheme(uri: str) -> str:
    """The kind of store; others MLflow would take for a folder, or knock at for minutes."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _DATABASES + _SERVERS:
        raise MlflowException(f"it starts with none of {', '.join(_DATABASES + _SERVERS)}")
    return scheme


def _file_of(url: URL) -> Path | None:
    """Of a SQLite database that lies in one."""
    has_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return Path(url.database or "").absolute() if has_file else None


def _must_connect(url: URL) -> None:
    is_patient = url.get_backend_name() in ("postgresql", "mysql")
    patience = {"connect_timeout": _PATIENCE_S} if is_patient else {}
    engine = sqlalchemy.create_engine(url, connect_args=patience)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _answering_client(uri: str) -> MlflowClient:
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # its news are told by who calls it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # in MLflow's use of SQLAlchemy
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _impatient() -> Generator[None]:
    """In this block MLflow's client gives up within seconds; it is configured by variables only."""
    ours = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_PATIENCE_S),
    }
    before = {name: os.environ[name] for name in ours if name in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
        os.environ.update(before)


def _ensure_experiment(client: MlflowClient, name: str, artifact_root: Path | None) -> str:
    """The id of the experiment, which is made if there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, _artifact_location(artifact_root, name))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another study made it just now
            if found is None:
                raise
    _must_be_active(found)
    return found.experiment_id


def _must_be_active(experiment: Experiment) -> None:
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        rule = "must not be a deleted experiment"
        remedy = f"give another name, or `mlflow experiments restore -x {experiment.experiment_id}`"
        raise input_error(ConfigError, "tracking.experiment", rule, remedy, experiment.name)


def _artifact_location(root: Path | None, experiment: str) -> str | None:
    folder = re.sub(r"[^\w.-]+", "_", experiment)
    return None if root is None else (root.absolute() / folder).as_uri()
