"""The sampler of each trial: what it draws follows from (study seed, trial number, what is known).

A trial's number says whether it is one of `study.first_trials`: an enqueued trial of Optuna's would come again, or
not at all, where a driver died. What is known are the study's own trials and, where it has a warm start, those of
other studies. The study itself stays as it is: its trials' numbers are its jobs', and all that it is told is of its
own. A sampler is shown a view of it in which the others come first, with the numbers that the earliest would have,
and takes them for its oldest. Optuna's own way, `Study.add_trials`, would make them trials of this study, with
numbers of its jobs; and a second Optuna study beside it, to draw from, would have to be told everything twice.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Container, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from study.config import StudyConfig, StudySection

_APART = 15_485_863
"""Between the seeds of studies that know another number of trials: more than any study has."""


def sampler_of(
    config: StudyConfig, number: int, known: Sequence[FrozenTrial], *, conditional: bool
) -> BaseSampler:
    """A fresh sampler for one trial, which knows these trials beside those of its study.

    `conditional` is a search of which not all trials draw all parameters: they are drawn together where they occur
    together.
    """
    # Of the same seed as theirs it would draw once more, at random, what is known.
    place = number + _APART * len(known)
    sampler = _plain(config.study, place, grouped=conditional)
    if known:
        sampler = _InformedSampler(sampler, known)
    if number >= len(config.first_trials):
        return sampler
    with _experimental():
        return PartialFixedSampler(dict(config.first_trials[number]), sampler)


def _plain(section: StudySection, place: int, *, grouped: bool) -> BaseSampler:
    seed = (section.seed * 1_000_003 + place) % 2**32
    if section.sampler == "random":
        return RandomSampler(seed=seed)
    with _experimental():
        return TPESampler(seed=seed, multivariate=True, group=grouped)


@contextmanager
def _experimental() -> Generator[None]:
    """What Optuna calls so is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class _InformedSampler(BaseSampler):
    """Draws as another sampler does that knows the trials of other studies, too."""

    def __init__(self, sampler: BaseSampler, known: Sequence[FrozenTrial]) -> None:
        self._sampler, self._known = sampler, _numbered(known, 0)
        self._view: _View | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(self._seen(study), self._later(trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(self._seen(study), self._later(trial), search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        seen, later = self._seen(study), self._later(trial)
        return self._sampler.sample_independent(seen, later, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()

    def _seen(self, study: optuna.Study) -> optuna.Study:
        """One view for all that a trial draws: a sampler is made for each."""
        if self._view is None:
            self._view = _View(study, self._known)
        return self._view

    def _later(self, trial: FrozenTrial) -> FrozenTrial:
        return _numbered([trial], trial.number + len(self._known))[0]


class _View(optuna.Study):
    """A study's trials, after those that are known beside them."""

    def __init__(self, study: optuna.Study, known: Sequence[FrozenTrial]) -> None:
        super().__init__(study.study_name, study._storage)  # pyright: ignore[reportPrivateUsage]
        self._known = known

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        own = super()._get_trials(deepcopy=False, use_cache=use_cache)
        every = [*self._known, *_numbered(own, len(self._known))]
        found = [trial for trial in every if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found


def _numbered(trials: Sequence[FrozenTrial], first: int) -> list[FrozenTrial]:
    """Copies with numbers from `first` on."""
    copies = [copy.copy(trial) for trial in trials]
    for number, trial in enumerate(copies, start=first):
        trial.number = number
    return copies
