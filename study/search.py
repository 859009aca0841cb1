"""OptunaSearch that tells Optuna the truth, and that repeats itself.

Three things differ from Ray's class: a trial's hyperparameters follow from (study seed, trial number,
what was known), whatever was drawn before; a trial ends COMPLETE with its best value, PRUNED or FAIL as
what it was; and trials that a dead driver left running are handed out again, with their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.search.optuna import OptunaSearch

from study.config import StudyConfig, StudySection
from study.jobs import Job
from study.space import Space
from trainable.records import EPOCH, EPOCHS, VALUE

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def open_study(config: StudyConfig) -> optuna.Study:
    """The Optuna study, made if there is none: in the config's storage, or a journal in the study's folder."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        storage=_open_storage(config),
        study_name=config.study.name,
        direction="maximize",
        load_if_exists=True,
    )


def finished_trials(study: optuna.Study) -> int:
    """Trials that need not run again."""
    return len(_trials(study, _FINISHED))


class StudySearch(OptunaSearch):
    """Ray's searcher over one Optuna study."""

    def __init__(self, config: StudyConfig, study: optuna.Study) -> None:
        self._study, self._section = study, config.study
        self._suggest_all = Space(config.search)
        self._trials: dict[str, Trial] = {}
        self._best: dict[str, float] = {}
        self._unfinished = _trials(study, (TrialState.RUNNING,))
        # No space is given: Ray's class then opens no study of its own.
        super().__init__(metric=VALUE, mode="max")

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Tune asks to be given the space; it is known."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The job of the next trial: an unfinished one if there is any, else a new one."""
        if self._unfinished:
            trial = Trial(self._study, _id_of(self._unfinished.pop(0)))
        else:
            self._study.sampler = _sampler(self._section, len(_trials(self._study)))
            trial = self._study.ask()
        self._suggest_all(trial)
        self._trials[trial_id] = trial
        return {"job": Job("trial", trial.number, dict(trial.params)).to_dict()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Let Optuna see the curve, and keep the best value."""
        # A trial that goes on from an older checkpoint reports an epoch again; Optuna keeps the first.
        self._trials[trial_id].report(result[VALUE], result[EPOCH])
        self._best[trial_id] = max(result[VALUE], self._best.get(trial_id, result[VALUE]))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how the trial ended."""
        trial = self._trials.pop(trial_id)
        if error or not result or EPOCH not in result:
            self._study.tell(trial, state=TrialState.FAIL)
        elif result[EPOCH] < result[EPOCHS]:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, self._best_of(trial_id, trial))

    def _best_of(self, trial_id: str, trial: Trial) -> float:
        """The best value of any epoch, also of those before this driver."""
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        return max([*frozen.intermediate_values.values(), self._best[trial_id]])


def _sampler(section: StudySection, number: int) -> BaseSampler:
    """A fresh sampler for each trial: what it draws depends on the seed, the number and the history alone."""
    seed = (section.seed * 1_000_003 + number) % 2**32
    if section.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed)


def _open_storage(config: StudyConfig) -> BaseStorage:
    if config.storage.optuna is not None:
        return RDBStorage(config.storage.optuna)
    return JournalStorage(JournalFileBackend(str(config.folder / "optuna.journal")))


def _trials(study: optuna.Study, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=None if states is None else tuple(states))


def _id_of(trial: FrozenTrial) -> int:
    return trial._trial_id  # pyright: ignore[reportPrivateUsage]
