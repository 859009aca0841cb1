"""The only code that writes to MLflow: entries become calls of its client, as few as there can be.

Every call names its run, and the client its store. All of them can be made again with no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from study.entries import (
    Entry,
    File,
    Logged,
    Opening,
    Params,
    Points,
    Status,
    Tags,
    Text,
    Untagging,
)
from study.store import Store
from trainable.storage import is_full

WINNER = "winner"
"""Alias of the version of a registered model that was registered last."""
VALUES_A_CALL = 1000
"""MLflow's limit for `log_batch`."""

_NEVER = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "NOT_FOUND", "RESOURCE_DOES_NOT_EXIST")
_LATER = (
    "ABORTED",
    "CUSTOMER_UNAUTHORIZED",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "TEMPORARILY_UNAVAILABLE",
    "UNAUTHENTICATED",
)

_Value = Metric | Param | RunTag


@dataclass(frozen=True)
class Refusal:
    """What the store will never take."""

    values: int
    """How many params, points, tags or other things it is."""
    what: str
    reason: str


@dataclass(frozen=True)
class Registration:
    """A version of a registered model that is to be."""

    name: str
    run_id: str
    """Of the trial that it comes from."""
    folder: Path
    """The model, in MLflow's own form."""
    place: str
    """Where it goes among the run's artifacts."""
    tags: Mapping[str, str]
    description: str


def is_refusal(error: Exception) -> bool:
    """Whether the same call can never succeed."""
    return isinstance(error, MlflowException) and error.error_code in _NEVER


def is_outage(error: Exception) -> bool:
    """Whether the store says that it cannot serve anybody, or not us, for now; or has no room."""
    says_so = isinstance(error, MlflowException) and error.error_code in _LATER
    return says_so or is_full(error)


def refusal_of(entries: Sequence[Entry], error: Exception | str) -> Refusal:
    """Entries that are given up, with the reason in a line."""
    what = ", ".join(dict.fromkeys(entry.kind for entry in entries))
    return Refusal(len(entries), what, _in_a_line(error))


class Tracker:
    """Writes the runs of one study."""

    def __init__(self, store: Store) -> None:
        self._client, self._experiment_id = store.client, store.experiment_id

    def answers(self) -> bool:
        """Whether the store can be reached."""
        try:
            self._client.search_experiments(max_results=1)
        except Exception:
            return False
        return True

    def open_run(self, opening: Opening, *, may_be_there: bool) -> str:
        """Make a run and return its id, or the id of the one that a lost call or a dead driver made."""
        if may_be_there:
            tests = [f"tags.`{name}` = '{value}'" for name, value in opening.found_by.items()]
            found = self._client.search_runs([self._experiment_id], " and ".join(tests))
            if found:
                return found[0].info.run_id
        run = self._client.create_run(
            self._experiment_id, opening.time_ms, dict(opening.tags), opening.name
        )
        return run.info.run_id

    def is_writable(self, run_id: str) -> bool:
        """Whether the store holds a run, and nobody has deleted it."""
        try:
            stage = self._client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            if is_refusal(error):
                return False
            raise
        return stage == LifecycleStage.ACTIVE

    def send(self, run_id: str, entries: Sequence[Entry]) -> list[Refusal]:
        """Write entries that go `together`; what the store refuses for good is returned."""
        first = entries[0]
        if isinstance(first, Logged):
            return self._log(run_id, [value for entry in entries for value in _values(entry)])
        try:
            self._do(run_id, first)
        except Exception as error:
            if not is_refusal(error):
                raise
            return [refusal_of(entries, error)]
        return []

    def register(self, model: Registration) -> str:
        """Keep a model with its run, and as the newest version of its name, which `WINNER` then leads to; its URI."""
        client = self._client
        client.log_artifacts(model.run_id, str(model.folder), model.place)
        try:
            client.create_registered_model(model.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        artifacts = client.get_run(model.run_id).info.artifact_uri
        version = client.create_model_version(
            model.name,
            f"{artifacts}/{model.place}",
            model.run_id,
            tags=dict(model.tags),
            description=model.description,
        ).version
        self._crown_newest(model.name, int(version))
        return f"models:/{model.name}/{version}"

    def _crown_newest(self, name: str, own: int) -> None:
        """Have `WINNER` lead to the newest version: `own`, or one that somebody else has made meanwhile.

        Who sets the alias looks again afterwards. So whoever sets it last has seen every version that
        there was, however the calls of several lie between one another.
        """
        crowned, newest = 0, own
        while newest > crowned:
            self._client.set_registered_model_alias(name, WINNER, str(newest))
            crowned = newest
            known = self._client.get_registered_model(name).latest_versions or ()
            newest = max([own, *(int(version.version) for version in known)])

    def _do(self, run_id: str, entry: Entry) -> None:
        match entry:
            case Status(status="RUNNING"):
                self._client.update_run(run_id, entry.status)
            case Status():
                self._client.set_terminated(run_id, entry.status, entry.time_ms)
            case Untagging():
                tags = self._client.get_run(run_id).data.tags
                for name in set(entry.names) & set(tags):
                    self._client.delete_tag(run_id, name)
            case Text():
                self._client.log_text(run_id, entry.text, entry.name)
            case File():
                if not Path(entry.path).exists():
                    raise MlflowException.invalid_parameter_value(f"{entry.path} is gone")
                self._client.log_artifact(run_id, entry.path, entry.folder)
            case _:
                raise AssertionError(entry.kind)

    def _log(self, run_id: str, values: list[_Value]) -> list[Refusal]:
        """Log what can be; of what is refused, halves are tried until the bad values are alone."""
        try:
            self._client.log_batch(
                run_id,
                metrics=[value for value in values if isinstance(value, Metric)],
                params=[value for value in values if isinstance(value, Param)],
                tags=[value for value in values if isinstance(value, RunTag)],
            )
        except MlflowException as error:
            if not is_refusal(error):
                raise
            if len(values) == 1 or not self.is_writable(run_id):
                names = ", ".join(dict.fromkeys(value.key for value in values))
                return [Refusal(len(values), names, _in_a_line(error))]
            half = len(values) // 2
            return [*self._log(run_id, values[:half]), *self._log(run_id, values[half:])]
        return []


def _values(entry: Entry) -> list[_Value]:
    match entry:
        case Params():
            return [Param(name, value) for name, value in entry.params.items()]
        case Points():
            return [
                Metric(name, value, entry.time_ms, entry.step)
                for name, value in entry.metrics.items()
            ]
        case Tags():
            return [RunTag(name, value) for name, value in entry.tags.items()]
        case _:
            raise AssertionError(entry.kind)


def _in_a_line(error: Exception | str) -> str:
    return " ".join(str(error).split())
