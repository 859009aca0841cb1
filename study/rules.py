"""What must hold between the keys of a study: for the base values, every value of the search, and the references."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TypeAlias

from study.problems import all_paths, keys_of, near_key, shown
from study.results import Value
from study.schema import StudyConfig
from study.space import Sample, SearchRange, Space
from trainable import rules
from trainable.config import TrialConfig
from trainable.errors import ConfigError, Problem
from trainable.rules.reading import READINGS

BlocksOf: TypeAlias = Callable[[TrialConfig], int | None]
"""Into how many blocks the student of a trial is cut; None where that is not known yet."""

_SHARED = ("data.", "teacher.", "resources.", "train.workers", "train.launcher")
_NOT_SHARED = ("data.batch_size", "data.augment.")
_LISTS = (
    "data.augment.resized_crop",
    "student.cuts",
    "distill.feature_weights",
    "distill.stage_epochs",
    "optim.milestones",
)
_BASELINE, _FIRST = "study.baseline", "study.first_trials"
_TEACHERS_OWN = {
    "data.batch_size": "teacher.train.batch_size",
    "train.epochs": "teacher.train.epochs",
    "optim": "teacher.train.optim",
}
"""Keys and sections of a trial that the teacher's training has its own of."""


def cross_problems(
    config: StudyConfig,
    blocks_of: BlocksOf = lambda _: None,
    unknown: Collection[str] = (),
) -> list[Problem]:
    """Everything that is wrong between keys; rules that read an `unknown` key are left out."""
    candidates, found = valid_candidates(config)
    for path in config.search.keys() - candidates.keys():
        unknown = {*unknown, path, near_key(path.split("."), TrialConfig) or path}
    found += _selection_problems(config, unknown)
    draws = _Draws(config, Space(config, config.ranges, candidates), blocks_of)
    found += draws.unread(unknown)
    found += draws.wrong_first_trials(unknown)
    needed = draws.without_base(unknown)
    found += needed
    for rule in rules.RULES:
        if not rule.reads_any([*unknown, *(problem.path for problem in needed)]):
            found += draws.broken(rule)
    found += _teacher_training_problems(config, unknown)
    found += _baseline_problems(config, blocks_of, unknown)
    return list(dict.fromkeys(found))


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


def _listed(sample: Sample) -> str:
    return ", ".join(f"{path}: {value}" for path, value in sample.items())


def in_baseline(problem: Problem, values: Mapping[str, Value]) -> Problem:
    """A problem of the student without a teacher, with the part that `study.baseline` has in it."""
    if problem.path in values:
        return replace(problem, path=f"{_BASELINE}.{problem.path}")
    return replace(problem, rule=f"{problem.rule} (for the student without a teacher)")


def valid_candidates(config: StudyConfig) -> tuple[dict[str, tuple[Value, ...]], list[Problem]]:
    """The values of every searched path that a trial takes, and what is wrong with the others."""
    candidates: dict[str, tuple[Value, ...]] = {}
    found: list[Problem] = []
    for path, values in config.ranges.items():
        problem = _path_problem(path, "search") or _kind_problem(path, config.search[path])
        if problem is not None:
            found.append(problem)
            continue
        for value in values.candidates:
            try:
                config.trial({path: value})
                candidates[path] = (*candidates.get(path, ()), value)
            except ConfigError as error:
                found += [_in_range(problem, path, value) for problem in error.problems]
    return candidates, found


def _path_problem(path: str, prefix: str) -> Problem | None:
    """Why a trial of its own cannot set a key, if it cannot."""
    place, known = f"{prefix}.{path}", all_paths(TrialConfig)
    if path in all_paths(StudyConfig) and path not in known:
        return Problem(place, "belongs to the study, not to a trial", "set it for the whole study")
    if path not in known:
        near = near_key(path.split("."), TrialConfig)
        remedy = f"did you mean {prefix}.{near}?" if near else "write a key's whole dotted path"
        return Problem(place, "is not a path of the config", remedy)
    if keys := keys_of(TrialConfig, path):
        remedy = f"name one of its keys: {', '.join(f'{path}.{key}' for key in keys)}"
        return Problem(place, "is a section, not a value", remedy)
    if path.startswith(_SHARED) and not path.startswith(_NOT_SHARED):
        rule = "belongs to what all trials of a study share, and cannot be set for one"
        return Problem(place, rule, f"set {path} for the whole study")
    if path in _LISTS:
        return Problem(place, "holds no single value", f"set {path} for the whole study")
    return None


def _kind_problem(path: str, values: SearchRange) -> Problem | None:
    """A range of k and n is one of decompositions."""
    if values.k is None or path == "distill.decomposition":
        return None
    rule = "k and n are a range of distill.decomposition alone"
    return Problem(f"search.{path}", rule, "write e.g. {choice: [1, 2]}")


def _in_range(problem: Problem, path: str, value: Value) -> Problem:
    """What is wrong with one value of a search range."""
    remedy = "leave it out of the range"
    if problem.rule == "must be a whole number" and isinstance(value, float):
        remedy = "search it with int: [low, high], or a choice of whole numbers"
    return replace(problem, path=f"search.{path}", remedy=remedy)


def _selection_problems(config: StudyConfig, unknown: Collection[str]) -> list[Problem]:
    if (
        not config.search
        or config.data.val_fraction > 0
        or {"data", "data.val_fraction"} & {*unknown}
    ):
        return []
    rule = "must be > 0 for a search, which selects by validation accuracy"
    return [Problem("data.val_fraction", rule, "hold out e.g. 0.1", "0")]


class _Draws:
    """The trials that can be drawn, as far as rules can tell them apart."""

    def __init__(self, config: StudyConfig, space: Space, blocks_of: BlocksOf) -> None:
        self._config, self._space, self._blocks_of = config, space, blocks_of
        self._trials: dict[tuple[tuple[str, Value], ...], TrialConfig] = {}

    def unread(self, unknown: Collection[str]) -> list[Problem]:
        """Searched paths that no trial reads."""
        found: list[Problem] = []
        for path in self._space.unread:
            reading = READINGS[path]
            if not _touches(unknown, (path, *reading.decided_by)):
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
                if not _touches(unknown, (path, *deciders)):
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
            if not _touches(unknown, (path,))
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
        return [
            in_search(problem, where[0], always=len(where) == len(samples))
            for problem, where in broken.items()
        ]

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


def _touches(unknown: Collection[str], paths: Collection[str]) -> bool:
    """Whether one of the paths is unknown, or in a section that is."""
    return any(path == one or path.startswith(f"{one}.") for path in paths for one in unknown)


def _teacher_training_problems(config: StudyConfig, unknown: Collection[str]) -> list[Problem]:
    """What is wrong with the teacher's own training beyond what is wrong with every trial."""
    if config.teacher is None or config.teacher.train is None:
        return []
    in_trial = {own: path for path, own in _TEACHERS_OWN.items()}
    unknown = [_moved(p, in_trial) or p for p in unknown if _moved(p, _TEACHERS_OWN) is None]
    found = rules.problems(config.teacher_training(), unknown=unknown)
    places = [(problem, _moved(problem.path, _TEACHERS_OWN)) for problem in found]
    return [replace(problem, path=place) for problem, place in places if place is not None]


def _moved(path: str, places: Mapping[str, str]) -> str | None:
    """A path with the new place of its key or section; None where that has none."""
    for old, new in places.items():
        if path == old or path.startswith(f"{old}."):
            return new + path.removeprefix(old)
    return None


def _baseline_problems(
    config: StudyConfig, blocks_of: BlocksOf, unknown: Collection[str]
) -> list[Problem]:
    """What is wrong with the student without a teacher, which trains at the base values beside a search."""
    values = config.study.baseline
    found = [problem for path in values if (problem := _path_problem(path, _BASELINE))]
    found += [
        Problem(f"{_BASELINE}.{path}", "learns without a teacher", "remove it")
        for path in values
        if path.startswith("distill.") and path in all_paths(TrialConfig)
    ]
    if found or any(path == "study" or path.startswith(_BASELINE) for path in unknown):
        return found
    try:
        trial = config.baseline()
    except ConfigError as error:
        return [replace(problem, path=f"{_BASELINE}.{problem.path}") for problem in error.problems]
    if not config.search:
        return []
    base = rules.problems(config.trial({}), unknown=unknown)
    # The base value of a searched path is the baseline's alone.
    common = [problem for problem in base if problem.path not in config.search]
    fresh = [p for p in rules.problems(trial, blocks_of(trial), unknown) if p not in common]
    return [in_baseline(problem, values) for problem in fresh]
