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
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from study.config import StudyConfig
from study.samplers import experiments_allowed, sampler_for
from study.space import Space

_APART = 15_485_863
"""Between the seeds of studies that know another number of trials: more than any study has."""


def sampler_of(
    config: StudyConfig, number: int, known: Sequence[FrozenTrial], space: Space
) -> BaseSampler:
    """A fresh sampler for one trial, which knows these trials beside those of its study; `space` is the config's."""
    section, first = config.study, config.first_trials
    given = first[number] if number < len(first) else {}
    if given and section.sampler == "cmaes":
        # Of a trial that it draws in part alone it would make a distribution of fewer dimensions.
        section = section.model_copy(update={"sampler": "random"})
    # Of the same seed as theirs it would draw once more, at random, what is known.
    place = number + _APART * len(known)
    sampler = sampler_for(section, place, distributions_of(space), space.conditions)
    if known or section.sampler == "gp":
        sampler = _InformedSampler(sampler, known)
    if not given:
        return sampler
    with experiments_allowed():
        return PartialFixedSampler(dict(given), sampler)


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Of every path that can have several values, sorted: a config may list them otherwise when it is resumed."""
    ranges = sorted(space.ranges.items())
    asked = FixedTrial({path: values.candidates[0] for path, values in ranges})
    for path, values in ranges:
        values.suggest(asked, path)
    return {path: one for path, one in asked.distributions.items() if not one.single()}


class _InformedSampler(BaseSampler):
    """Draws as another sampler does that knows the trials of other studies, too, and not the trial itself.

    GP takes all that runs for trials beside the one that it draws; one that was left half drawn would be beside itself.
    """

    def __init__(self, sampler: BaseSampler, known: Sequence[FrozenTrial]) -> None:
        self._sampler, self._known = sampler, _numbered(known, 0)
        self._view: _View | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        seen, later = self._seen(study, trial), self._later(trial)
        return self._sampler.infer_relative_search_space(seen, later)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        seen, later = self._seen(study, trial), self._later(trial)
        return self._sampler.sample_relative(seen, later, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        seen, later = self._seen(study, trial), self._later(trial)
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

    def _seen(self, study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
        """One view for all that a trial draws: a sampler is made for each."""
        if self._view is None:
            self._view = _View(study, self._known, without=trial.number)
        return self._view

    def _later(self, trial: FrozenTrial) -> FrozenTrial:
        return _numbered([trial], trial.number + len(self._known))[0]


class _View(optuna.Study):
    """A study's trials `without` one of them, after those that are known beside them."""

    def __init__(self, study: optuna.Study, known: Sequence[FrozenTrial], *, without: int) -> None:
        super().__init__(study.study_name, study._storage)  # pyright: ignore[reportPrivateUsage]
        self._known, self._without = known, without

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        own = super()._get_trials(deepcopy=False, use_cache=use_cache)
        count = len(self._known)
        others = [one for one in _numbered(own, count) if one.number != count + self._without]
        every = [*self._known, *others]
        found = [trial for trial in every if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found


def _numbered(trials: Sequence[FrozenTrial], first: int) -> list[FrozenTrial]:
    """Copies with numbers from `first` on."""
    copies = [copy.copy(trial) for trial in trials]
    for number, trial in enumerate(copies, start=first):
        trial.number = number
    return copies
