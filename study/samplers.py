"""How a trial's hyperparameters are drawn: Optuna's samplers, so that a study repeats itself.

Each trial has a fresh sampler: what it draws follows from the study's seed, the trial's number and what Optuna's
storage knew. What a sampler has to remember is in that storage, too: NSGA-II's generations, CMA-ES's distribution.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.samplers.nsgaii import SBXCrossover
from optuna.study import Study
from optuna.trial import FrozenTrial

from study.schema import StudySection
from trainable.errors import Problem

STARTUP = 5
"""Trials that TPE and GP draw at random before they have a model. Their usual 10 are as many as a small study has,
which then would be a random search."""
POPULATION = 10
"""Trials of one of NSGA-II's generations. Its usual 50 are more than most studies have, and the first is drawn at
random; not from `study.trials`, which may be raised later."""
LEARN_CONSTRAINTS = ("tpe", "gp", "nsga2")
"""The samplers that draw by how far trials broke constraints."""
Distributions = Mapping[str, BaseDistribution]
"""By the parameter's name."""


def sampler_for(
    section: StudySection, number: int, space: Distributions, conditional: Collection[str] = ()
) -> BaseSampler:
    """A fresh sampler for the trial of a number.

    `space` is all that trials can draw, in the same order for each of them; `conditional` are the names of what not
    all of them do. TPE then draws those parameters together that occur together.
    """
    seed = (section.seed * 1_000_003 + number) % 2**32
    match section.sampler:
        case "random":
            return RandomSampler(seed=seed)
        case "tpe":
            with experiments_allowed():
                return TPESampler(
                    seed=seed,
                    n_startup_trials=STARTUP,
                    multivariate=bool(conditional) or None,
                    group=bool(conditional),
                )
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
        case "nsga2":
            with experiments_allowed():
                # Its usual crossover only swaps values, so that many a child is an earlier trial once more.
                crossover = SBXCrossover()
            return NSGAIISampler(seed=seed, population_size=POPULATION, crossover=crossover)
        case "qmc":
            with experiments_allowed():
                return _Sobol(number, section.seed, space)
        case "cmaes":
            always = {name: one for name, one in space.items() if name not in conditional}
            return _Cmaes(seed, always)


class _Sobol(QMCSampler):
    """A scrambled Sobol' sequence, of all that trials can draw, in which a trial has the place of its number.

    Of its point a trial takes what it reads and is not given. Optuna's own has the dimensions of the first trial that
    ended, whichever that was, and counts how often it was asked, which is once more for a trial that is handed out
    again. The scrambling is the study's: with one for each trial the points would be no sequence.
    """

    def __init__(self, number: int, study_seed: int, space: Distributions) -> None:
        self._place, self._space = number, dict(space)
        super().__init__(scramble=True, seed=study_seed, warn_independent_sampling=False)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        point = super().sample_relative(study, trial, self._space)
        return {name: point[name] for name in search_space}

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._place


class _Cmaes(CmaEsSampler):
    """CMA-ES of the numbers that every trial draws; all else it draws at random.

    Optuna's own takes those that all ended trials have had. Once there are fewer of them than its distribution has
    dimensions, or more, it draws at random for ever.
    """

    def __init__(self, seed: int, always: Distributions) -> None:
        super().__init__(seed=seed, warn_independent_sampling=False)
        kinds = (FloatDistribution, IntDistribution)
        self._numbers = {name: one for name, one in always.items() if isinstance(one, kinds)}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return dict(self._numbers)


@contextmanager
def experiments_allowed() -> Generator[None]:
    """Optuna calls some parts experimental that have been there for years; their tests are ours, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def missing_package(section: StudySection) -> list[Problem]:
    """What is wrong if the sampler's package is not installed here, where the study is to be driven."""
    if section.sampler != "cmaes" or find_spec("cmaes") is not None:
        return []
    rule = "needs the package cmaes, which is not installed"
    remedy = "install kd-study[cmaes], or use another sampler"
    return [Problem("study.sampler", rule, remedy, "cmaes")]
