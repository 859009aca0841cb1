"""What is wrong with the trials that a search can draw, and with what it is given to draw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from study.problems import shown, touches
from study.results import Value
from study.schema import StudyConfig
from study.space import Sample, Space
from trainable import rules
from trainable.config import TrialConfig
from trainable.errors import Problem
from trainable.rules.reading import READINGS

BlocksOf: TypeAlias = Callable[[TrialConfig], int | None]
"""Into how many blocks the student of a trial is cut; None where that is not known yet."""

_FIRST = "study.first_trials"


def in_search(problem: Problem, sample: Sample, *, always: bool) -> Problem:
    """A problem of one sample, or of all, with the part that the search has in it."""
    others = {path: value for path, value in sample.items() if path != problem.path}
    note = ""
    if others and not always:
        note = f" (where search gives {_listed(others)})"
    elif others and problem.path not in sample:
        note = f" ({', '.join(others)} from search)"
    path = f"search.{problem.path}" if problem.path in sample else problem.path
    return replace(problem, path=path, rule=problem.rule + note)


class Draws:
    """The trials that can be drawn, as far as rules can tell them apart."""

    def __init__(self, config: StudyConfig, space: Space, blocks_of: BlocksOf) -> None:
        self._config, self._space, self._blocks_of = config, space, blocks_of
        self._trials: dict[tuple[tuple[str, Value], ...], TrialConfig] = {}

    def unread(self, unknown: Collection[str]) -> list[Problem]:
        """Searched paths that no trial reads."""
        found: list[Problem] = []
        for path in self._space.unread:
            reading = READINGS[path]
            if not touches(unknown, (path, *reading.decided_by)):
                rule = f"is read by no trial of this search, only where {reading.where}"
                found.append(
                    Problem(f"search.{path}", rule, "remove it, or change what decides it")
                )
        return found

    def without_base(self, unknown: Collection[str]) -> list[Problem]:
        """Searched paths without a base value that trials need which do not draw them."""
        found: list[Problem] = []
        for path in self._space.conditions:
            for sample in self._space.draws((path,)):
                if path in sample or not self._needs(path, sample):
                    continue
                deciders = READINGS[path].decided_by
                if not touches(unknown, (path, *deciders)):
                    given = {key: sample[key] for key in deciders if key in sample}
                    rule = f"needs a base value for trials that do not draw it (where search gives {_listed(given)})"
                    found.append(Problem(path, rule, "give it one beside the search", "nothing"))
                break
        return found

    def wrong_first_trials(self, unknown: Collection[str]) -> list[Problem]:
        """Values of `study.first_trials` that these trials cannot draw."""
        study = self._config.study
        found = [
            problem
            for number, given in enumerate(study.first_trials)
            for path in given
            if not touches(unknown, (path,))
            if (problem := self._wrong_value(f"{_FIRST}.{number}.{path}", path, given)) is not None
        ]
        if (count := len(study.first_trials)) > study.trials:
            rule = f"must be at most {study.trials}, which is study.trials"
            found.append(Problem(_FIRST, rule, "leave some out, or raise it", f"{count} of them"))
        return found

    def _wrong_value(self, place: str, path: str, given: Mapping[str, Value]) -> Problem | None:
        ranges = self._config.ranges
        if path not in ranges:
            remedy = "search it, or set it for all trials"
            return Problem(place, "is not searched, and so the same for all trials", remedy)
        if not ranges[path].holds(given[path]):
            rule = f"must be a value that search.{path} can give"
            return Problem(place, rule, "choose one, or widen the range", shown(given[path]))
        known = {
            key: value for key, value in given.items() if key in ranges and ranges[key].holds(value)
        }
        if any(path in sample for sample in self._space.draws((path,), known)):
            return None
        rule = f"is not drawn by this trial, but only where {READINGS[path].where}"
        return Problem(place, rule, "leave it out, or give what decides it", shown(given[path]))

    def broken(self, rule: rules.Rule) -> list[Problem]:
        """A rule, for every trial that differs in what it reads."""
        samples: list[Sample] = []
        broken: dict[Problem, list[Sample]] = {}
        for whole in self._space.draws(rule.reads):
            sample = {path: value for path, value in whole.items() if path in rule.reads}
            trial = self._trial(whole)
            samples.append(sample)
            for problem in rule.check(trial, self._blocks_of(trial)):
                broken.setdefault(problem, []).append(sample)
        return _together(
            in_search(problem, where[0], always=len(where) == len(samples))
            for problem, where in broken.items()
        )

    def _needs(self, path: str, sample: Sample) -> bool:
        """Whether a trial that does not draw a path breaks a rule by having no value there."""
        trial, read = self._trial(sample), [rule for rule in rules.RULES if path in rule.reads]
        first = self._space.first(path)
        filled = self._config.trial({**sample, path: first})
        return any(
            not set(rule.check(trial, None)) <= set(rule.check(filled, None)) for rule in read
        )

    def _trial(self, sample: Sample) -> TrialConfig:
        key = tuple(sample.items())
        if key not in self._trials:
            self._trials[key] = self._config.trial(sample)
        return self._trials[key]


def _listed(sample: Sample) -> str:
    return ", ".join(f"{path}: {value}" for path, value in sample.items())


def _together(problems: Iterable[Problem]) -> list[Problem]:
    """One for all values that are wrong for the same reason."""
    values: dict[Problem, list[str]] = {}
    for problem in problems:
        got = values.setdefault(replace(problem, got=None), [])
        got += [problem.got] if problem.got is not None else []
    return [replace(problem, got=", ".join(got) or None) for problem, got in values.items()]
