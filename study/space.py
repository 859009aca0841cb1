"""What is searched: dotted config paths with ranges, and which of them a trial draws.

A path is drawn only for a trial that reads it (`trainable.rules.reading`), after the paths that decide so. Of a
value without an effect the sampler would learn noise, and spend trials on it. A trial that does not draw a path
has its base value there, or none where its method must not have one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field, model_validator

from study.problems import broken_rule
from study.results import Value
from trainable.config import Config, TrialConfig
from trainable.plan import Decomposition, largest_n
from trainable.rules.reading import READINGS, with_value

if TYPE_CHECKING:
    import optuna

Sample = dict[str, Value]
"""Dotted config path → sampled value."""
KINDS = ("uniform", "loguniform", "int", "choice")
"""The keys of a range, as a config writes them, that stand alone."""

_Groups = Annotated[int, Field(ge=1, le=99)]
_Recompositions = Annotated[int, Field(ge=0, le=99)]


class SearchRange(Config):
    """The values that one path may take: exactly one of the four, or `k` with `n`."""

    uniform: tuple[float, float] | None = None
    """Lowest and highest of a real number, evenly."""
    loguniform: tuple[float, float] | None = None
    """Lowest and highest of a positive real number, evenly in its logarithm."""
    integers: tuple[int, int] | None = Field(default=None, alias="int")
    """Lowest and highest whole number."""
    choice: tuple[bool | int | float | str, ...] | None = None
    """The values themselves."""
    k: tuple[_Groups, _Groups] | None = None
    """Fewest and most groups of a decomposition k/n: the choice of all that can be, with `n`."""
    n: tuple[_Recompositions, _Recompositions] | None = None
    """Fewest and most recompositions of a decomposition k/n, with `k`."""

    @model_validator(mode="after")
    def _is_a_range(self) -> SearchRange:
        given = [self.uniform, self.loguniform, self.integers, self.choice, self.k or self.n]
        if sum(value is not None for value in given) != 1:
            rule = "must have exactly one of uniform, loguniform, int, choice, and k with n"
            raise broken_rule(rule, "write e.g. {loguniform: [1e-4, 1e-1]}")
        if self.choice is not None:
            _check_choice(self.choice)
        elif self.k or self.n:
            _check_decompositions(self.k, self.n)
        else:
            _check_bounds(*self._bounds, logarithmic=self.loguniform is not None)
        return self

    @property
    def candidates(self) -> tuple[Value, ...]:
        """The ends of the range, or all choices: what must be valid for every sample to be."""
        if self.k is not None and self.n is not None:
            return tuple(str(one) for one in _decompositions(self.k, self.n))
        return self._bounds if self.choice is None else self.choice

    @property
    def is_number(self) -> bool:
        """Whether it is drawn as a number, and not as one of several values."""
        return any((self.uniform, self.loguniform, self.integers))

    @property
    def _bounds(self) -> tuple[float, float]:
        """Only where there is no choice."""
        bounds = self.uniform or self.loguniform or self.integers
        assert bounds is not None
        return bounds

    def within(self, epochs: int) -> SearchRange:
        """The range itself; of `k` and `n` the choice of the decompositions whose stages have an epoch each.

        All of them where none has: then it is the epochs that are wrong.
        """
        if self.k is None or self.n is None:
            return self
        possible = _decompositions(self.k, self.n)
        fitting = [one for one in possible if one.n < epochs] or possible
        return SearchRange(choice=tuple(str(one) for one in fitting))

    def suggest(self, trial: optuna.trial.BaseTrial, path: str) -> Value:
        """Ask Optuna for a value."""
        if self.choice is not None:
            return cast(Value, trial.suggest_categorical(path, list(self.choice)))
        if self.integers is not None:
            return trial.suggest_int(path, *self.integers)
        return trial.suggest_float(path, *self._bounds, log=self.loguniform is not None)

    def holds(self, value: Value) -> bool:
        """Whether a trial may draw this value; a whole number stands for a real one."""
        if self.choice is not None:
            return bool(self._equals(value))
        low, high = self._bounds
        kinds = (int,) if self.integers is not None else (int, float)
        return type(value) in kinds and low <= cast(float, value) <= high

    def _equals(self, value: Value) -> tuple[Value, ...]:
        """The choices that a value is; 1 is 1.0, but not True."""
        is_flag = isinstance(value, bool)
        assert self.choice is not None
        return tuple(c for c in self.choice if c == value and isinstance(c, bool) == is_flag)

    def own(self, value: Value) -> Value:
        """A value that it `holds`, of the type that it draws."""
        if self.choice is not None:
            return self._equals(value)[0]
        is_real = self.uniform is not None or self.loguniform is not None
        return float(value) if is_real else value


class Space:
    """The samples that the trials of a search can have, and Optuna's define-by-run function that draws them."""

    def __init__(
        self,
        base: TrialConfig,
        ranges: Mapping[str, SearchRange],
        candidates: Mapping[str, tuple[Value, ...]] | None = None,
    ) -> None:
        """`base` has the values of trials that draw nothing; `candidates` are those of the ranges that are valid."""
        if candidates is None:
            candidates = {path: values.candidates for path, values in ranges.items()}
        self._base, self._ranges, self._candidates = base, dict(ranges), dict(candidates)
        self._known: dict[tuple[str, tuple[Value | None, ...]], bool] = {}
        self.unread: tuple[str, ...] = ()
        """Paths that no trial reads."""
        self.conditions = {path: READINGS[path] for path in candidates if path in READINGS}
        """Paths that some trials read and others do not."""
        self._order = self._ordered(candidates)
        reads = {path: set(self._reads_of(path)) for path in self.conditions}
        self.unread = tuple(path for path, found in reads.items() if found == {False})
        self.conditions = {p: r for p, r in self.conditions.items() if len(reads[p]) > 1}
        self._order = self._ordered(candidates)

    @property
    def ranges(self) -> dict[str, SearchRange]:
        """Of every path that some trial draws."""
        return {path: self._ranges[path] for path in self._order if path not in self.unread}

    @property
    def numbers(self) -> tuple[str, ...]:
        """Paths of which every trial draws one of several numbers."""
        return tuple(
            path
            for path, values in self.ranges.items()
            if path not in self.conditions and values.is_number and len({*values.candidates}) > 1
        )

    @property
    def usual(self) -> Sample:
        """The sample of the first candidates."""
        return next(self.draws())

    def first(self, path: str) -> Value:
        """The first candidate of a path."""
        return self._candidates[path][0]

    def is_read(self, path: str, sample: Mapping[str, Value]) -> bool:
        """Whether a trial reads a path, of which everything is drawn that decides it."""
        if path not in self.conditions:
            return path not in self.unread
        deciders = self._deciders(path)
        key = path, tuple(sample.get(decider) for decider in deciders)
        if key not in self._known:
            self._known[key] = self.conditions[path].is_read(self._decided(sample, deciders))
        return self._known[key]

    def has_use(self, path: str) -> bool:
        """Whether some trial has a use for a path, searched or not, that `READINGS` has."""
        reading = READINGS[path]
        deciders = [key for key in reading.decided_by if key in self._candidates]
        return any(
            reading.has_use(self._decided(sample, deciders)) for sample in self.draws(deciders)
        )

    def __call__(self, trial: optuna.trial.BaseTrial) -> Sample:
        """Ask Optuna for the paths that the trial reads, each after those that decide so."""
        sample: Sample = {}
        for path in self._order:
            if self.is_read(path, sample):
                sample[path] = self._ranges[path].suggest(trial, path)
        return sample

    def drawn(self, values: Mapping[str, Value]) -> Sample:
        """Of values for all paths those that a trial draws."""
        sample: Sample = {}
        for path in self._order:
            if path in values and self.is_read(path, sample):
                sample[path] = values[path]
        return sample

    def draws(
        self, paths: Collection[str] = (), given: Mapping[str, Value] | None = None
    ) -> Iterator[Sample]:
        """Every sample that can be drawn of the candidates of these paths, and of those that decide about them.

        The others have the first of their candidates, and `given` values are drawn whatever the candidates are.
        """
        varied = self._ordered(path for path in paths if path in self._candidates)
        return self._branches({}, self._order, varied, given or {})

    def _decided(self, sample: Mapping[str, Value], deciders: Iterable[str]) -> TrialConfig:
        """The base with the sampled values of these paths; it is not validated."""
        trial = self._base
        for decider in deciders:
            if decider in sample:
                trial = with_value(trial, decider, sample[decider])
        return trial

    def _branches(
        self,
        sample: Sample,
        order: Sequence[str],
        varied: Collection[str],
        given: Mapping[str, Value],
    ) -> Iterator[Sample]:
        if not order:
            yield sample
            return
        path, *rest = order
        if not self.is_read(path, sample):
            yield from self._branches(sample, rest, varied, given)
            return
        values = self._candidates[path] if path in varied else self._candidates[path][:1]
        for value in (given[path],) if path in given else values:
            yield from self._branches({**sample, path: value}, rest, varied, given)

    def _ordered(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The paths in their order, but each after those that decide about it, which are added."""
        found: dict[str, None] = {}

        def visit(path: str) -> None:
            if path not in found:
                for decider in self._deciders(path):
                    visit(decider)
                found[path] = None

        for path in paths:
            visit(path)
        return tuple(found)

    def _deciders(self, path: str) -> tuple[str, ...]:
        """The searched paths that decide about a conditional one."""
        if path not in self.conditions:
            return ()
        return tuple(key for key in self.conditions[path].decided_by if key in self._candidates)

    def _reads_of(self, path: str) -> Iterator[bool]:
        """Whether each trial that there can be reads it."""
        for sample in self.draws(self._deciders(path)):
            yield self.is_read(path, sample)


def _decompositions(k: tuple[int, int], n: tuple[int, int]) -> list[Decomposition]:
    """Those that can be, by k, then by n."""
    return [
        Decomposition(groups, times)
        for groups in range(k[0], k[1] + 1)
        for times in range(n[0], min(n[1], largest_n(groups)) + 1)
    ]


def _check_decompositions(k: tuple[int, int] | None, n: tuple[int, int] | None) -> None:
    if k is None or n is None:
        raise broken_rule("must have k and n together", "write e.g. {k: [2, 5], n: [0, 3]}")
    for ends in (k, n):
        _check_bounds(*ends, logarithmic=False)
    if not _decompositions(k, n):
        rule = "must hold a decomposition k/n, of which n <= ⌈log₂ k⌉"
        raise broken_rule(rule, "lower n, or raise k")


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
