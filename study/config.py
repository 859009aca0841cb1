"""A study's config: YAML and `--set` → frozen models, with everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from study.idle import idle_problems
from study.problems import near_keys, parse, place_of, problems_of
from study.results import Value
from study.rules import cross_problems, valid_candidates
from study.schema import MOST_LETTERS, StudyConfig, StudySection
from study.space import Sample
from study.tree import (
    Tree,
    flat,
    put,
    relative_places,
    take,
    with_absolute_paths,
    with_settings,
    with_values,
)
from study.yaml import dump_yaml, parse_yaml
from trainable.errors import ConfigError, Problem, input_error
from trainable.rules.reading import at_default

__all__ = [
    "RESOLVED",
    "Draft",
    "StudyConfig",
    "StudySection",
    "differences",
    "draft_config",
    "dump_config",
    "embedded_store",
    "flat",
    "load_config",
    "load_for_cluster",
    "load_single",
    "parse_config",
    "with_values",
    "without_search",
]

_ALONE = "-train"
"""After the name of the study whose single trial is trained."""
RESOLVED = "config.yaml"
"""The file in a study's folder that holds the config it began with."""

_STAND_INS = {
    "study.name": "unnamed",
    "data.source": "digits",
    "student.model": "resnet18",
    "teacher.model": "resnet18",
    "teacher.train.epochs": 1,
}
"""A value for every key that has no default, so that the others can be checked without it."""


@dataclass(frozen=True)
class Draft:
    """A config as far as it could be read."""

    config: StudyConfig | None
    """With defaults or stand-ins at the `unknown` keys; None if not even that can be had."""
    unknown: frozenset[str] = frozenset()
    """Dotted paths of what is wrong or missing: what depends on them cannot be checked."""
    problems: tuple[Problem, ...] = ()
    readable: bool = True
    """Whether each key by itself is right; the problems then lie between keys."""


def load_config(path: Path, settings: Sequence[str] = ()) -> StudyConfig:
    """Read a YAML file, apply `--set path=value` settings in their order, and validate the whole.

    Raises ConfigError with every problem found: unknown keys, bad values, rules between keys, and
    ranges of the search that could give an invalid trial.
    """
    return _finished(draft_config(path, settings))


def load_for_cluster(path: Path, settings: Sequence[str] = ()) -> StudyConfig:
    """As `load_config`, for other machines: the places of files must be absolute."""
    tree = _read(path)
    draft = _draft(tree, settings, str(path))
    relative = relative_places(with_settings(tree, settings))
    return _finished(replace(draft, problems=(*draft.problems, *relative)))


def draft_config(path: Path, settings: Sequence[str] = ()) -> Draft:
    """As `load_config`, but raises only if there is no tree of keys at all."""
    return _draft(_read(path), settings, str(path))


def parse_config(tree: Any, settings: Sequence[str] = (), where: str = "config") -> StudyConfig:
    """As `load_config`, from a parsed document."""
    return _finished(_draft(tree, settings, where))


def dump_config(config: StudyConfig) -> str:
    """The resolved config as YAML, from which `parse_config` gives an equal one."""
    return dump_yaml(config.model_dump(mode="json", by_alias=True, exclude_none=True))


def embedded_store(storage: Path) -> str:
    """URI of the MLflow store that studies keep under `storage` unless they name another."""
    path = str(storage / "mlflow.db").replace("%", "%25").replace("?", "%3F")  # as in any URL
    return f"sqlite:///{path}"


def differences(old: StudyConfig, new: StudyConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted paths whose values differ, with both; where a study's files lie is not part of it."""
    before, after = (flat(c.model_dump(mode="json", by_alias=True)) for c in (old, new))
    pairs = {key: (before.get(key), after.get(key)) for key in {**before, **after}}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and key != "storage.path"}


def load_single(
    path: Path, settings: Sequence[str] = ()
) -> tuple[StudyConfig, dict[str, Value | None]]:
    """The study `without_search` of a file, and the defaults that it takes at searched paths.

    A search that cannot be read is an error; what it would make of other keys does not matter here.
    """
    draft = draft_config(path, settings)
    if draft.config is None or not draft.readable or valid_candidates(draft.config)[1]:
        raise ConfigError(draft.problems)
    return without_search(draft.config), _searched_at_default(draft.config)


def without_search(config: StudyConfig) -> StudyConfig:
    """A study of one trial at the base values, called `<name>-train`.

    ConfigError names the searched paths that have no base value and no default, or a name that is too long for it.
    """
    if len(config.study.name) > (most := MOST_LETTERS - len(_ALONE)):
        rule = f"must have at most {most} characters: the single trial's is called <name>{_ALONE}"
        raise ConfigError([Problem("study.name", rule, "shorten it", config.study.name)])
    alone = {
        "name": f"{config.study.name}{_ALONE}",
        "trials": 1,
        "epoch_budget": None,
        "first_trials": (),
        "warm_start": (),
        "screening": None,
        "baselines": {},
        "replicates": None,
    }
    section = config.study.model_copy(update=alone)
    single = config.model_copy(update={"study": section, "search": {}})
    if idle := {problem.path for problem in idle_problems(single)}:
        # What other trials or baselines of the study have a use for is no mistake, and stays out of this one.
        elsewhere = idle - {problem.path for problem in cross_problems(config)}
        single = reduce(at_default, sorted(elsewhere), single)
    found = cross_problems(single)
    if found:
        sample = {path: values.candidates[0] for path, values in config.ranges.items()}
        raise ConfigError([*_without_base(single, sample, found), *found])
    return single


def _searched_at_default(config: StudyConfig) -> dict[str, Value | None]:
    """Searched paths that the config gives no value of its own, with the default that a single trial takes."""
    given = flat(config.model_dump(exclude_unset=True, exclude={"search"}))
    values = flat(config.model_dump(exclude={"search"}))
    return {path: values.get(path) for path in config.search if path not in given}


def _without_base(single: StudyConfig, sample: Sample, found: list[Problem]) -> list[Problem]:
    """Searched paths that have no value here, where any value would help; takes those out of `found`."""
    values = flat(single.model_dump())
    blocking: list[Problem] = []
    for path, value in sample.items():
        if values.get(path) is not None:
            continue
        filled = with_values(single.model_dump(), {path: value})
        left = cross_problems(parse(StudyConfig, filled))
        if gone := [problem for problem in found if problem not in left]:
            remedy = f"give it one, or --set {path}={value}"
            blocking.append(Problem(path, "is searched and has no base value", remedy))
            found[:] = [problem for problem in found if problem not in gone]
    return blocking


def _read(path: Path) -> Any:
    if not path.is_file():
        raise input_error(ConfigError, str(path), "must be a config file", "check the path")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        rule = f"must be text in UTF-8, but byte {error.start} is not"
        raise input_error(ConfigError, str(path), rule, "save it as UTF-8") from None
    except OSError as error:
        rule = f"must be readable, but: {error.strerror}"
        raise input_error(ConfigError, str(path), rule, "check its permissions") from None
    return parse_yaml(text, str(path))


def _finished(draft: Draft) -> StudyConfig:
    if draft.config is None or draft.problems:
        raise ConfigError(draft.problems)
    return draft.config


def _draft(tree: Any, settings: Sequence[str], where: str) -> Draft:
    if not isinstance(tree, dict):
        rule, remedy = "must be a mapping of sections", "see configs/quickstart.yaml"
        raise input_error(ConfigError, where, rule, remedy)
    tree = with_absolute_paths(with_settings(tree, settings))
    try:
        config = parse(StudyConfig, tree)
    except ValidationError as error:
        found = problems_of(error, StudyConfig)
        config, unknown = _without_errors(tree, error)
    else:
        found, unknown = [], frozenset[str]()
    if config is not None:
        between = cross_problems(config, unknown=unknown)
        return Draft(config, unknown, tuple(dict.fromkeys([*found, *between])), not found)
    return Draft(config, unknown, tuple(found), not found)


def _without_errors(
    tree: Tree, error: ValidationError
) -> tuple[StudyConfig | None, frozenset[str]]:
    """The config without the values that are wrong, so that everything else is checked all the same."""
    rest = with_values(tree, {})
    unknown: set[str] = set()
    for details in error.errors(include_url=False):
        place = place_of(details)
        take(rest, place)
        unknown |= _depending_on(place, details["type"])
    for path, value in _STAND_INS.items():
        section, *_ = keys = path.split(".")
        needed = section != "teacher" or isinstance(_at(rest, keys[:-1]), dict)
        if needed and _at(rest, keys) is None:
            put(rest, keys, value)
    try:
        return parse(StudyConfig, rest), frozenset(unknown)
    except ValidationError:
        return None, frozenset(unknown)


def _depending_on(place: Sequence[str], kind: str) -> set[str]:
    """The keys whose values are not known if this place is wrong."""
    if place[0] == "search":
        # A search that cannot be read may stand for what the method needs.
        return {place[1]} if len(place) > 1 else {"distill"}
    meant = near_keys(place, StudyConfig) if kind == "extra_forbidden" else []
    return {".".join(place), *meant}


def _at(tree: Tree, keys: Sequence[str]) -> Any:
    place: Any = tree
    for key in keys:
        place = place.get(key) if isinstance(place, dict) else None
    return place
