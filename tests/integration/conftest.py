"""Whole studies on a real Ray cluster, with a real Optuna journal and a real MLflow store, each of seconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial

from study.config import StudyConfig, parse_config
from study.driver import run_study
from study.entries import STUDY_RUN
from study.ledger import find_results
from study.optuna_study import open_study
from study.results import StudyResults, TrialRow
from trainable.records import EpochRecord

TREE: dict[str, Any] = {
    "study": {"name": "tiny", "trials": 2},
    "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 64, "augment": {"crop": 1}},
    "teacher": {"model": "mini_resnet_18_4"},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "kd", "alpha": 0.5},
    "optim": {"lr": 0.05},
    "train": {"epochs": 2, "clip": 5.0, "observe_every": 5},
}

Configure = Callable[..., StudyConfig]


class Spy:
    """A display that keeps what it is told, and lets a test step in at any event."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.messages: list[str] = []
        self.started: list[TrialRow] = []
        self.epochs: list[tuple[str, int]] = []
        self.ended: list[TrialRow] = []
        self.slots: int | None = None
        self.rested: Sequence[TrialRow] = ()
        self.at_phase: Callable[[str], None] = lambda text: None
        self.at_epoch: Callable[[TrialRow, EpochRecord], None] = lambda row, record: None

    def open(self, slots: int, rested: Sequence[TrialRow]) -> Spy:
        self.slots, self.rested = slots, rested
        return self

    def __enter__(self) -> Spy:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def phase(self, text: str) -> None:
        self.phases.append(text)
        self.at_phase(text)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def trial_started(self, row: TrialRow) -> None:
        self.started.append(row)

    def epoch(self, row: TrialRow, record: EpochRecord, epochs_total: int) -> None:
        self.epochs.append((row.label, record.epoch))
        self.at_epoch(row, record)

    def trial_ended(self, row: TrialRow) -> None:
        self.ended.append(row)


class Left:
    """What a study left behind: its results, its MLflow runs and its Optuna trials."""

    def __init__(self, config: StudyConfig, results: StudyResults, spy: Spy) -> None:
        self.config, self.results, self.spy = config, results, spy
        self.client = client_of(config)

    @property
    def parent(self) -> Run:
        return self.client.get_run(self.results.parent_run_id)

    @property
    def children(self) -> list[Run]:
        return children_of(self.client, self.config)

    def child(self, label: str) -> Run:
        role, _, number = label.partition(" ")
        (run,) = [
            run
            for run in self.children
            if (run.data.tags["kd.role"], run.data.tags["kd.trial"]) == (role, number or "0")
        ]
        return run

    def history(self, label: str) -> dict[str, list[tuple[int, float]]]:
        """Every point of every metric of a run: (step, value)."""
        run = self.parent if label == STUDY_RUN else self.child(label)
        return history_of(self.client, run.info.run_id)

    @property
    def optuna_trials(self) -> list[FrozenTrial]:
        return open_study(self.config).get_trials()


def client_of(config: StudyConfig) -> MlflowClient:
    return MlflowClient(f"sqlite:///{config.storage.path}/mlflow.db")


def children_of(client: MlflowClient, config: StudyConfig) -> list[Run]:
    return [run for run in runs_of(client, config) if "mlflow.parentRunId" in run.data.tags]


def runs_of(client: MlflowClient, config: StudyConfig) -> list[Run]:
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    wanted = f"tags.`kd.study` = '{config.study.name}'"
    return list(client.search_runs([experiment.experiment_id], wanted, max_results=1000))


def history_of(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    names = client.get_run(run_id).data.metrics
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in names
    }


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both and key != "search" else value
    return result


@pytest.fixture(scope="session")
def random_teacher(tmp_path_factory: pytest.TempPathFactory, node_cache: Path) -> Path:
    """Weights of an untrained teacher: enough to distil from, where it is not the point."""
    import torch

    from trainable.networks.build import Pictures, build_teacher_network
    from trainable.networks.weights import save_weights

    torch.manual_seed(0)
    config = parse_config(merged(TREE, {"teacher": {"checkpoint": "/nowhere"}}))
    network = build_teacher_network(config, Pictures(10, 3, (8, 8)))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(network.network, path)
    return path


@pytest.fixture(scope="session")
def configure(random_teacher: Path) -> Configure:
    """A tiny study's config under a path; keyword arguments are sections to change."""

    def build(path: Path, **changes: Any) -> StudyConfig:
        tree = merged(TREE, {"storage": {"path": str(path)}})
        if not changes.get("teacher"):
            tree = merged(tree, {"teacher": {"checkpoint": str(random_teacher)}})
        return parse_config(merged(tree, changes))

    return build


@pytest.fixture(scope="session")
def conduct(ray_cluster: str) -> Callable[..., Left]:
    """Run a study to its end."""

    def run(config: StudyConfig, spy: Spy | None = None) -> Left:
        spy = spy or Spy()
        return Left(config, run_study(config, spy.open), spy)

    return run


@pytest.fixture(scope="session")
def left_by() -> Callable[[StudyConfig], Left]:
    """What a study left that another process ran."""

    def read(config: StudyConfig) -> Left:
        return Left(config, find_results(Path(config.storage.path), config.study.name), Spy())

    return read


@pytest.fixture(scope="session")
def make_spy() -> type[Spy]:
    return Spy


@pytest.fixture(scope="session", autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
