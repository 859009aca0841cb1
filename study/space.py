"""What is searched: dotted config paths with ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import optuna
from pydantic import Field, model_validator

from study.results import Value
from trainable.config import Config

Sample = dict[str, Value]
"""Dotted config path → sampled value."""


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
    def _one_kind(self) -> SearchRange:
        given = [self.uniform, self.loguniform, self.integers, self.choice]
        if sum(value is not None for value in given) != 1:
            raise ValueError("must have exactly one of uniform, loguniform, int and choice")
        bounds = self.uniform or self.loguniform or self.integers
        if bounds is not None:
            low, high = bounds
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"low <= high must hold, but got low = {low}, high = {high}")
            if self.loguniform is not None and low <= 0:
                raise ValueError(f"loguniform needs low > 0, but got {low}")
        elif not self.choice:
            raise ValueError("choice must have at least one value")
        elif len(set(self.choice)) != len(self.choice):
            raise ValueError("choice must not have a value twice")
        return self

    @property
    def candidates(self) -> tuple[Value, ...]:
        """The ends of the range, or all choices: what must be valid for every sample to be."""
        return self.choice or self.uniform or self.loguniform or self.integers or ()

    def suggest(self, trial: optuna.Trial, path: str) -> Value:
        """Ask Optuna for a value."""
        if self.choice is not None:
            return cast(Value, trial.suggest_categorical(path, list(self.choice)))
        if self.integers is not None:
            return trial.suggest_int(path, *self.integers)
        if self.loguniform is not None:
            return trial.suggest_float(path, *self.loguniform, log=True)
        return trial.suggest_float(path, *(self.uniform or (0.0, 0.0)))


class Space:
    """Optuna's define-by-run function over all searched paths. Picklable, as Tune demands."""

    def __init__(self, ranges: Mapping[str, SearchRange]) -> None:
        self._ranges = dict(ranges)

    def __call__(self, trial: Any) -> None:
        """Suggest every path; the values are what the trial was asked for."""
        for path, values in self._ranges.items():
            values.suggest(trial, path)
