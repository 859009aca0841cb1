"""What Optuna's storage knows of a study: its trials, and those of its baselines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from study.baselines import baseline_search
from study.config import StudyConfig
from study.jobs import Job
from study.ledger import LEDGER
from study.optuna_storage import open_storage
from study.outcomes import curve_of, directions
from study.results import State
from study.schema import BaselineName
from study.secrets import without_passwords
from study.warm_start import keep_known_trials
from trainable.errors import ConfigError, Problem

Beside = Mapping[BaselineName, optuna.Study]
"""Optuna's studies of the baselines that are searched, beside that of the study itself."""
NO_BASELINES: Beside = {}

_FINISHED: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

_STUDY_ID = "kd.study_id"
"""As MLflow's tag."""

_LOG = logging.getLogger(__name__)


def open_study(config: StudyConfig, say: Callable[[str], None] = _LOG.warning) -> optuna.Study:
    """The Optuna study, made if there is none: in the config's storage, or a journal in the study's folder.

    It keeps the trials of other studies that the config names, since it is made. `say` is told of them, and when
    the storage goes away and is back.
    """
    study = _opened(config, open_storage(config, say))
    keep_known_trials(study, config, say)
    return study


def claim(config: StudyConfig, study_id: str) -> None:
    """Write into a database whose the study's trials there are.

    ConfigError if they are of another folder's study: it would take them for its own.
    """
    url = config.storage.optuna
    if url is None or not config.search:
        return
    storage = open_storage(config, _LOG.warning)
    for part in (config, *(baseline_search(config, name) for name in config.study.baselines)):
        study = _opened(part, storage)
        owner = study.user_attrs.get(_STUDY_ID)
        is_known = (config.folder / LEDGER).exists() or not trials_of(study)
        if owner != study_id and (owner is not None or not is_known):
            rule = f"holds a study {study.study_name!r} that is not the one of {config.place}"
            remedy = "choose another study.name, or delete it there (`optuna delete-study`)"
            raise ConfigError([Problem("storage.optuna", rule, remedy, without_passwords(url))])
        study.set_user_attr(_STUDY_ID, study_id)


def open_baselines(config: StudyConfig, study: optuna.Study) -> Beside:
    """The Optuna studies of the baselines that are searched, in the storage of `study`."""
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    return {
        name: _opened(baseline_search(config, name), storage) for name in config.study.baselines
    }


def _opened(config: StudyConfig, storage: BaseStorage) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        storage=storage,
        study_name=config.study.name,
        directions=directions(config.study),
        load_if_exists=True,
    )


def ended_states(study: optuna.Study) -> dict[int, State]:
    """How the trials that have ended did, by number."""
    return {trial.number: _FINISHED[trial.state] for trial in trials_of(study, tuple(_FINISHED))}


def ended_curves(study: optuna.Study) -> dict[int, dict[int, float]]:
    """The values of the trials that have ended, by number and epoch."""
    ended = trials_of(study, tuple(_FINISHED))
    return {trial.number: curve_of(trial) for trial in ended}


def unfinished(study: optuna.Study) -> list[Job]:
    """The jobs of the trials that Optuna thinks are running."""
    running = trials_of(study, (TrialState.RUNNING,))
    return [Job("trial", trial.number, dict(trial.params)) for trial in running]


def prune(study: optuna.Study, job: Job) -> None:
    """Tell Optuna that a trial was stopped; it may have been told before."""
    study.tell(job.number, state=TrialState.PRUNED, skip_if_finished=True)


def trials_of(study: optuna.Study, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
    """In their order, not to be changed; `None` is of any state."""
    return study.get_trials(deepcopy=False, states=None if states is None else tuple(states))
