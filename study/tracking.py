"""The only code that writes to MLflow: one parent run a study, one child run a trial.

Every call names its run, and the client its store: MLflow's global state (active run, tracking
URI) is never touched. A store that cannot be used is found when a `Tracker` is built, within about
ten seconds; later calls keep the client's own four minutes of retries, since a study should outlive
a short outage.
"""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

# Before mlflow is imported: it neither reports usage to its makers nor prints links to runs.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import sqlalchemy
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from study.results import Role, State, Value
from trainable import errors
from trainable.errors import ConfigError, input_error
from trainable.records import BEST_VAL_ACCURACY, EpochRecord

StudyState = Literal["complete", "failed", "interrupted"]

TAG_STUDY = "kd.study"
TAG_TRIAL = "kd.trial"
TAG_ROLE = "kd.role"
TAG_STATE = "kd.state"
TAG_ERROR = "kd.error"
_TAG_PARENT = "mlflow.parentRunId"
_TAG_NOTE = "mlflow.note.content"

_STATUS: dict[State | StudyState, str] = {
    "running": "RUNNING",
    "complete": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""MLflow's status for each state: KILLED is what was stopped on purpose before its end."""

_PARAMS_A_CALL = 100
_PARAM_CHARACTERS = 6000
_REASON_CHARACTERS = 500
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https", "databricks")
_PATIENCE_S = 4


@dataclass(frozen=True)
class OpenRun:
    """A child run that still says `running`."""

    run_id: str
    role: str
    number: int


class Tracker:
    """Writes a study's runs to one experiment of one MLflow store.

    `uri` is `sqlite:///<absolute path>`, another database that MLflow knows, or a server's address.
    `artifact_root` is the folder of the embedded store's artifacts (each experiment gets a folder
    there); None leaves the place to the server. Raises `ConfigError` if the store cannot be used.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: Path | None) -> None:
        self._client = _connect(uri)
        self._experiment_id = _ensure_experiment(self._client, experiment, artifact_root)

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment, as in the addresses of its pages."""
        return self._experiment_id

    def start_study(
        self,
        name: str,
        config: Mapping[str, object],
        tags: Mapping[str, str],
        *,
        config_text: str,
        note: str,
    ) -> str:
        """Open the parent run and return its id.

        `config` (nested) becomes flat params, `config_text` the artifact `config.yaml`, and `note`
        (markdown) the description on the run's page.
        """
        own = {TAG_STUDY: name, TAG_STATE: "running", _TAG_NOTE: note}
        run_id = self._create_run(name, {**tags, **own})
        self._log_params(run_id, flatten(config))
        self.log_text(run_id, config_text, "config.yaml")
        return run_id

    def resume_study(self, run_id: str) -> None:
        """Mark the parent run as running again; `ConfigError` if the store does not hold it."""
        try:
            self._set_state(run_id, "running")
        except MlflowException as error:
            rule = "must name the store that holds the study's run"
            remedy = "restore that store or that run, or give the study another name"
            raise input_error(ConfigError, "tracking.uri", rule, remedy, run_id) from error

    def end_study(self, run_id: str, state: StudyState, metrics: Mapping[str, float]) -> None:
        """Close the parent run with its final metrics (`best/test_accuracy`, …)."""
        self.log_metrics(run_id, metrics)
        self._set_state(run_id, state)

    def update_best(self, parent_run_id: str, best_val_accuracy: float, step: int) -> None:
        """Log the best validation accuracy so far on the parent; `step` counts ended trials."""
        self.log_metrics(parent_run_id, {BEST_VAL_ACCURACY: best_val_accuracy}, step)

    def start_trial(
        self, parent_run_id: str, study: str, role: Role, number: int, params: Mapping[str, Value]
    ) -> str:
        """Open a child run and return its id; `params` by dotted config path."""
        tags = {
            _TAG_PARENT: parent_run_id,
            TAG_STUDY: study,
            TAG_TRIAL: str(number),
            TAG_ROLE: role,
            TAG_STATE: "running",
        }
        run_id = self._create_run(_run_name(role, number), tags)
        self._log_params(run_id, params)
        return run_id

    def reopen_trial(self, run_id: str) -> None:
        """Go on with a child run that was closed or left open; what it failed of is forgotten."""
        self._set_state(run_id, "running")
        if TAG_ERROR in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, TAG_ERROR)

    def log_epoch(self, run_id: str, record: EpochRecord) -> None:
        """Log an epoch's metrics in one call, at step = epoch and the record's own time.

        The time is part of a point's key in MLflow, so that a replayed record adds nothing.
        """
        self._log_points(run_id, record.metrics, record.epoch, record.timestamp_ms)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers that belong to no epoch, at the present time."""
        self._log_points(run_id, metrics, step, time.time_ns() // 1_000_000)

    def end_trial(self, run_id: str, state: State, error: str | None = None) -> None:
        """Close a child run: FINISHED if complete, KILLED if pruned, FAILED if failed.

        Of `error` (a traceback, or a plain reason) `reason_of` becomes the tag `kd.error`, and the
        whole the artifact `error.txt`.
        """
        if error:
            self.set_tags(run_id, {TAG_ERROR: _shortened(reason_of(error), _REASON_CHARACTERS)})
            self.log_text(run_id, error, "error.txt")
        self._set_state(run_id, state)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags by name."""
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, under `folder`."""
        self._client.log_artifact(run_id, str(path), folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Write `text` as the artifact `name` of a run."""
        self._client.log_text(run_id, text, name)

    def leftover(self, parent_run_id: str) -> list[OpenRun]:
        """The child runs that a driver left open, for a resumed one to take up or close."""
        wanted = f"tags.`{_TAG_PARENT}` = '{parent_run_id}' and tags.`{TAG_STATE}` = 'running'"
        runs: list[OpenRun] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs([self._experiment_id], wanted, page_token=token)
            runs += map(_open_run, page)
            token = page.token or None
        return runs

    def _create_run(self, name: str, tags: dict[str, str]) -> str:
        return self._client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id

    def _log_params(self, run_id: str, params: Mapping[str, Value]) -> None:
        entities = [
            Param(path, _shortened(str(value), _PARAM_CHARACTERS)) for path, value in params.items()
        ]
        for start in range(0, len(entities), _PARAMS_A_CALL):
            self._client.log_batch(run_id, params=entities[start : start + _PARAMS_A_CALL])

    def _log_points(
        self, run_id: str, metrics: Mapping[str, float], step: int, timestamp_ms: int
    ) -> None:
        points = [Metric(name, value, timestamp_ms, step) for name, value in metrics.items()]
        self._client.log_batch(run_id, metrics=points)

    def _set_state(self, run_id: str, state: State | StudyState) -> None:
        self._client.set_tag(run_id, TAG_STATE, state)
        if state == "running":
            self._client.update_run(run_id, status=_STATUS[state])
        else:
            self._client.set_terminated(run_id, _STATUS[state])


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, Value]:
    """A nested config by dotted path; None is left out, and a sequence becomes `[a, b]`."""
    flat: dict[str, Value] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(cast("Mapping[str, object]", value), f"{path}.")
        elif isinstance(value, bool | int | float | str):
            flat[path] = value
        elif value is not None:
            flat[path] = _compact(value)
    return flat


def reason_of(error: str) -> str:
    """The last line of a traceback or a plain reason, without the name of one of our own errors' classes.

    Their text says all by itself, and beginning with the path of what is wrong.
    """
    last = error.strip().rpartition("\n")[2].strip()
    return re.sub(rf"^{re.escape(errors.__name__)}\.\w+: ", "", last)


def _compact(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_compact, cast('Iterable[object]', value)))}]"
    return str(value)


def _run_name(role: Role, number: int) -> str:
    """As `TrialRow.label` names the same trial."""
    return f"{role} {number}" if role in ("trial", "replicate") else role


def _open_run(run: Run) -> OpenRun:
    return OpenRun(run.info.run_id, run.data.tags[TAG_ROLE], int(run.data.tags[TAG_TRIAL]))


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _connect(uri: str) -> MlflowClient:
    """A client whose store has answered, and which keeps its news off the terminal."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        _check_address(uri)
        with warnings.catch_warnings(), _impatient():
            warnings.simplefilter("ignore", DeprecationWarning)  # in MLflow's use of SQLAlchemy
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = _shortened(str(error).partition("\n")[0], _REASON_CHARACTERS)
        rule = f"must be the address of an MLflow store that answers ({reason})"
        remedy = "start the server, correct the address, or remove it to use the study's storage"
        raise input_error(ConfigError, "tracking.uri", rule, remedy, uri) from error
    return client


def _check_address(uri: str) -> None:
    """Refuse what MLflow would take for a folder, or would knock at for minutes."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in _SERVERS:
        return
    if scheme not in _DATABASES:
        raise MlflowException(f"it starts with none of {', '.join(_DATABASES + _SERVERS)}")
    url = sqlalchemy.make_url(uri)
    if scheme == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    patience = {"connect_timeout": _PATIENCE_S} if scheme in ("postgresql", "mysql") else {}
    engine = sqlalchemy.create_engine(url, connect_args=patience)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


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
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        rule = "must not be a deleted experiment"
        remedy = f"give another name, or `mlflow experiments restore -x {found.experiment_id}`"
        raise input_error(ConfigError, "tracking.experiment", rule, remedy, name)
    return found.experiment_id


def _artifact_location(root: Path | None, experiment: str) -> str | None:
    folder = re.sub(r"[^\w.-]+", "_", experiment)
    return None if root is None else (root.absolute() / folder).as_uri()
