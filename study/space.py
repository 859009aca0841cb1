"""What is searched: dotted config paths with ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, model_validator

from study.problems import broken_rule
from study.results import Value
from trainable.config import Config

if TYPE_CHECKING:
    import optuna

Sample = dict[str, Value]
"""Dotted config path → sampled value."""
KINDS = ("uniform", "loguniform", "int", "choice")
"""The keys of a range, as a config writes them."""


class SearchRange(Config):
    """The values that one path may take: exactly one of the four."""

    uniform: tuple[float, float] | None = None
    """Lowest and highest of a real number, evenly."""
    loguniform: tuple[float, float] | None = None
    """Lowest and highest of a positive real number, evenly in its logarithm."""
    integers: tuple[int, int] | None = Field(default=None, alias="int")
    """Lowest and highest whole number."""
    choice: tuple[bool | int | float | str, ...] | None = None
    """The values themselves."""

    @model_validator(mode="after")
    def _is_a_range(self) -> SearchRange:
        given = [self.uniform, self.loguniform, self.integers, self.choice]
        if sum(value is not None for value in given) != 1:
            rule = "must have exactly one of uniform, loguniform, int and choice"
            raise broken_rule(rule, "write e.g. {loguniform: [1e-4, 1e-1]}")
        if self.choice is not None:
            _check_choice(self.choice)
        else:
            _check_bounds(*self._bounds, logarithmic=self.loguniform is not None)
        return self

    @property
    def candidates(self) -> tuple[Value, ...]:
        """The ends of the range, or all choices: what must be valid for every sample to be."""
        return self._bounds if self.choice is None else self.choice

    @property
    def _bounds(self) -> tuple[float, float]:
        """Only where there is no choice."""
        bounds = self.uniform or self.loguniform or self.integers
        assert bounds is not None
        return bounds

    def suggest(self, trial: optuna.trial.BaseTrial, path: str) -> Value:
        """Ask Optuna for a value."""
        if self.choice is not None:
            return cast(Value, trial.suggest_categorical(path, list(self.choice)))
        if self.integers is not None:
            return trial.suggest_int(path, *self.integers)
        return trial.suggest_float(path, *self._bounds, log=self.loguniform is not None)


class Space:
    """Optuna's define-by-run function over all searched paths. Picklable, as Tune demands."""

    def __init__(self, ranges: Mapping[str, SearchRange]) -> None:
        self._ranges = dict(ranges)

    def __call__(self, trial: Any) -> None:
        """Suggest every path; the values are what the trial was asked for."""
        for path, values in self._ranges.items():
            values.suggest(trial, path)


def _check_choice(choice: tuple[Value, ...]) -> None:
    if not choice:
        raise broken_rule("choice must have at least one value", "give some, e.g. [32, 64]")
    if len(set(choice)) != len(choice):
        raise broken_rule("choice must not have a value twice", "remove one of the two")


def _check_bounds(low: float, high: float, *, logarithmic: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise broken_rule("both ends must be finite", "give two numbers")
    if low > high:
        raise broken_rule("low <= high must hold", "write the lower end first")
    if logarithmic and low <= 0:
        raise broken_rule("loguniform needs low > 0", "raise it, or use uniform")
