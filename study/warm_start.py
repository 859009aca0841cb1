"""What a study's sampler knows from others: their complete trials, as far as this search could draw them.

They are no trials of this study. Its job numbers, counts, leaderboard, `resume` and `extend` do not know them; its
sampler alone does (`study.drawing`). Their values are copied into Optuna's study when it is made, as one of its
attributes: what a trial draws then follows from this study alone, whatever becomes of the others.

A trial is known if one of this search would be the same training but for its seed: every key that it reads has the
other's value, by the search or the base values. A study with other data, another teacher, student or number of
epochs has none, and is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, create_trial

from study.config import RESOLVED, StudyConfig, flat, parse_config
from study.ledger import LEDGER, find_results
from study.problems import shown
from study.results import StudyResults, TrialRow
from study.space import Sample, Space
from study.yaml import parse_yaml
from trainable.config import TrialConfig
from trainable.errors import ConfigError, InputError, Problem
from trainable.rules.reading import is_read

_PATH = "study.warm_start"
_KNOWN = "known trials"
"""The attribute of Optuna's study: [[sample, value], …]."""
_SAME = ("data", "teacher", "student", "train.epochs")
"""Keys and sections that make studies comparable, where the searches leave them alone."""
_COMPARED = (*_SAME, "distill", "optim", "train")
_OTHER = (
    "data.download",
    "data.loader",
    "data.cache_budget_gib",
    "data.decode_workers",
    "teacher.cache",
    "train.launcher",
    "train.max_skipped",
    "train.activation_checkpointing",
    "train.checkpoint",
    "train.batchnorm.batch_stats_accuracy",
    "train.deterministic",
    "train.cuda_graph",
    "train.compile",
    "train.seed",
    "train.observe_every",
)
"""Keys that change a trial's result by rounding or by chance, if at all."""


def warm_start_problems(config: StudyConfig) -> list[Problem]:
    """What is wrong with the studies that this one is to know; nothing once it knows them."""
    if (config.folder / LEDGER).exists():
        return []
    found: list[Problem] = []
    for name in dict.fromkeys(config.study.warm_start):
        try:
            _comparable(config, name)
        except InputError as error:
            found += [_of_warm_start(problem, name) for problem in error.problems]
    return found


def _of_warm_start(problem: Problem, name: str) -> Problem:
    """What is wrong with another study's files, as what is wrong with naming it."""
    if problem.path == _PATH:
        return problem
    return _problem(f"must name finished studies, but {name}: {problem}", problem.remedy, name)


def keep_known_trials(study: optuna.Study, config: StudyConfig, say: Callable[[str], None]) -> None:
    """Copy the trials of `study.warm_start` to Optuna's study, once, and tell how many there are.

    Raises:
        ConfigError: A study is not there, has not finished or is not comparable.
    """
    if not config.study.warm_start or _KNOWN in study.user_attrs:
        return
    space, known = config.space, list[tuple[Sample, float]]()
    for name in dict.fromkeys(config.study.warm_start):
        other, results = _comparable(config, name)
        rows = [row for row in results.of("trial") if row.state == "complete"]
        found = [pair for row in rows if (pair := _known(config, space, other, row)) is not None]
        say(f"{len(found)} of {len(rows)} complete trials of {name} are known to the sampler")
        known += found
    study.set_user_attr(_KNOWN, known)


def known_trials(study: optuna.Study, config: StudyConfig) -> list[FrozenTrial]:
    """The trials that were copied, as Optuna knows trials; none without a warm start."""
    space = config.space
    return [_frozen(space, sample, value) for sample, value in study.user_attrs.get(_KNOWN, [])]


def _frozen(space: Space, sample: Sample, value: float) -> FrozenTrial:
    fixed = FixedTrial(sample)
    space(fixed)
    return create_trial(value=value, params=fixed.params, distributions=fixed.distributions)


def _comparable(config: StudyConfig, name: str) -> tuple[StudyConfig, StudyResults]:
    """A study whose trials may be known, and its results; ConfigError says why it is none."""
    other, results = _finished(config.root, name)
    mine, theirs = _settings(config), _settings(other)
    searched = {*config.search, *other.search}
    for key in sorted(mine.keys() | theirs.keys()):
        is_fixed = _is_in(key, _SAME) and not _is_in(key, searched)
        if is_fixed and mine.get(key) != theirs.get(key):
            rule = f"must name studies with the teacher, data, student and epochs of this one, unlike {name}"
            got = f"{key} {shown(theirs.get(key))} there and {shown(mine.get(key))} here"
            raise ConfigError([_problem(rule, "leave it out, or make them equal", got)])
    return other, results


def _finished(root: Path, name: str) -> tuple[StudyConfig, StudyResults]:
    """The config and the results of a study that has finished."""
    results = find_results(root, name)
    if not results.finished:
        rule = "must name finished studies, since what they tell is copied once"
        remedy = f"finish it (kd-study resume {name}), or leave it out"
        raise ConfigError([_problem(rule, remedy, name)])
    path = root / name / RESOLVED
    text = path.read_text(encoding="utf-8")
    return parse_config(parse_yaml(text, str(path)), where=str(path)), results


def _problem(rule: str, remedy: str, got: str) -> Problem:
    return Problem(_PATH, rule, remedy, got)


def _known(
    config: StudyConfig, space: Space, other: StudyConfig, row: TrialRow
) -> tuple[Sample, float] | None:
    """A trial's sample in this search, and its accuracy; None if this search could not draw it."""
    if row.value is None:
        return None
    drawn = {path: row.params[path] for path in other.search if path in row.params}
    theirs = other.trial(drawn)
    values, ranges = flat(theirs.model_dump()), config.ranges
    sample = space.drawn({p: values[p] for p in ranges if values.get(p) is not None})
    drawable = {path for path, value in sample.items() if ranges[path].holds(value)}
    if any(space.is_read(path, sample) for path in ranges.keys() - drawable):
        return None
    sample = {p: ranges[p].own(v) if p in drawable else v for p, v in sample.items()}
    try:
        mine = config.trial(sample)
    except ConfigError:
        return None
    return (sample, row.value) if _is_same_training(mine, theirs) else None


def _is_same_training(mine: TrialConfig, theirs: TrialConfig) -> bool:
    """But for its seed and its place, as far as the trial reads its config."""
    one, other = _settings(mine), _settings(theirs)
    keys = [key for key in one.keys() | other.keys() if is_read(mine, key) or is_read(theirs, key)]
    return all(one.get(key) == other.get(key) for key in keys)


def _settings(config: TrialConfig) -> dict[str, Any]:
    """What the result of a trial depends on, by dotted path."""
    values = flat(config.model_dump(include=set(TrialConfig.model_fields)))
    return {k: v for k, v in values.items() if _is_in(k, _COMPARED) and not _is_in(k, _OTHER)}


def _is_in(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
