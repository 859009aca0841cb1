"""A study's config: YAML and `--set` → frozen models, with everything that is wrong at once."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from study.problems import all_paths, problems_of, section_model
from study.results import Value
from study.space import Sample, SearchRange
from study.yaml import dump_yaml, parse_yaml
from trainable import plan
from trainable.config import (
    Config,
    DistillConfig,
    PositiveFloat,
    PositiveInt,
    StudentConfig,
    TrialConfig,
)
from trainable.errors import ConfigError, Problem, input_error

Tree = dict[str, Any]
"""A config as YAML gives it, before it is parsed."""
_Model = TypeVar("_Model", bound=BaseModel)

_SHARED = ("data.", "teacher.", "resources.", "train.workers", "train.launcher")
_NOT_SHARED = ("data.batch_size", "data.augment.crop", "data.augment.flip")


class PrunerConfig(Config):
    """Which trials are stopped early."""

    name: Literal["none", "asha"] = "none"
    """`asha`: at geometric rungs of epochs, only the best 1/reduction_factor go on (Li et al. 2020)."""
    grace_epochs: PositiveInt = 1
    """The first rung: no trial is stopped before."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0


class StudySection(Config):
    """The search as a whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the study's folder and its MLflow run."""
    trials: PositiveInt = 20
    time_budget_s: PositiveFloat | None = None
    """Seconds after which the search starts no trial and stops those that run; None has no limit."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampler; the trials' own is train.seed."""
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: PrunerConfig = PrunerConfig()
    concurrency: PositiveInt | None = None
    """Most trials at a time; None runs as many as the cluster has room for."""
    max_failures: Annotated[int, Field(ge=0)] = 0
    """How often a trial that failed is tried again, from its last checkpoint."""
    baseline: dict[str, Value] = Field(default_factory=dict[str, Value])
    """Dotted paths that the student without a teacher trains with, over the base values."""


class StorageSection(Config):
    """Where things are kept."""

    path: str = "./runs"
    """Folder of all studies; each has its own folder in it."""
    optuna: str | None = None
    """Storage URL of Optuna; None keeps a journal in the study's folder."""


class TrackingSection(Config):
    """The MLflow store."""

    uri: str | None = None
    """A server's URI, or None for `mlflow.db` under storage.path."""
    experiment: str = "kd-study"


class StudyConfig(TrialConfig):
    """A search over trials; the inherited sections are the base values of every trial."""

    study: StudySection
    storage: StorageSection = StorageSection()
    tracking: TrackingSection = TrackingSection()
    search: dict[str, SearchRange] = Field(default_factory=dict[str, SearchRange])

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.storage.path) / self.study.name

    def trial(self, sample: Mapping[str, Value]) -> TrialConfig:
        """The config of one trial: the base values with the sampled ones in their places."""
        base = self.model_dump(include=set(TrialConfig.model_fields))
        return _validate(TrialConfig, with_values(base, sample))

    @property
    def usual_sample(self) -> Sample:
        """One value for every searched path."""
        return {path: values.candidates[0] for path, values in self.search.items()}

    def corner_samples(self) -> Iterator[tuple[str, Sample]]:
        """Every searched path with each end of its range, or each choice, the others being usual."""
        for path, values in self.search.items():
            for candidate in values.candidates:
                yield path, {**self.usual_sample, path: candidate}

    def baseline(self) -> TrialConfig:
        """The student without a teacher: the base values, with `study.baseline` over them."""
        base = self.model_dump(include=set(TrialConfig.model_fields))
        tree = with_values(base, self.study.baseline)
        return _validate(TrialConfig, {**tree, "distill": {"method": "none"}})

    def teacher_training(self) -> TrialConfig:
        """The teacher, trained from the labels alone on the same data; only where `teacher.train` is set."""
        if self.teacher is None or self.teacher.train is None:
            raise ValueError("the config trains no teacher")
        train = self.teacher.train
        return TrialConfig(
            data=self.data.model_copy(update={"batch_size": train.batch_size}),
            student=StudentConfig(model=self.teacher.model, cuts=self.student.cuts),
            distill=DistillConfig(method="none"),
            optim=train.optim,
            train=self.train.model_copy(update={"epochs": train.epochs, "seed": train.seed}),
            resources=self.resources,
        )


def load_config(path: Path, settings: Sequence[str] = ()) -> StudyConfig:
    """Read a YAML file, apply `--set path=value` settings in their order, and validate the whole.

    Raises ConfigError with every problem found: unknown keys, bad values, rules between keys, and
    ranges of the search that could give an invalid trial.
    """
    if not path.is_file():
        raise input_error(ConfigError, str(path), "must be a config file", "check the path")
    return parse_config(
        parse_yaml(path.read_text(encoding="utf-8"), str(path)), settings, str(path)
    )


def parse_config(tree: Any, settings: Sequence[str] = (), where: str = "config") -> StudyConfig:
    """As `load_config`, from a parsed document."""
    if not isinstance(tree, dict):
        raise input_error(
            ConfigError, where, "must be a mapping of sections", "see configs/quickstart.yaml"
        )
    tree = copy.deepcopy(tree)
    for setting in settings:
        tree = _with_setting(tree, setting)
    _make_paths_absolute(tree)
    try:
        config = StudyConfig.model_validate(tree)
    except ValidationError as error:
        found = problems_of(error, StudyConfig)
        rest = _validate_the_rest(tree, error)
        raise ConfigError([*found, *_new(cross_problems(rest) if rest else [], found)]) from None
    if found := cross_problems(config):
        raise ConfigError(found)
    return config


def dump_config(config: StudyConfig) -> str:
    """The resolved config as YAML, from which `parse_config` gives an equal one."""
    return dump_yaml(config.model_dump(mode="json", by_alias=True, exclude_none=True))


def differing_keys(old: StudyConfig, new: StudyConfig) -> list[str]:
    """Dotted paths whose values differ; where a study's files lie is not part of it."""
    before, after = (flat(c.model_dump(mode="json", by_alias=True)) for c in (old, new))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [key for key in keys if key != "storage.path"]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings → dotted paths; lists are values. Keys that hold dots themselves stay as they are."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            result |= flat(value, f"{path}.")
        else:
            result[path] = value
    return result


def with_values(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """A copy of a tree with values at dotted paths; missing sections are made."""
    result = copy.deepcopy(tree)
    for path, value in values.items():
        *sections, key = path.split(".")
        place = result
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[key] = value
    return result


def without_search(config: StudyConfig) -> StudyConfig:
    """A study of one trial at the base values, called `<name>-train`.

    ConfigError names the searched paths that have no base value and no default.
    """
    section = config.study.model_copy(update={"name": f"{config.study.name}-train", "trials": 1})
    single = config.model_copy(update={"study": section, "search": {}})
    found = cross_problems(single)
    rule, remedy = "is searched and has no base value", "give it one, or --set it"
    blocking = [
        replace(problem, rule=rule, remedy=remedy) if problem.path in config.search else problem
        for problem in found
    ]
    if blocking:
        raise ConfigError(blocking)
    return single


def searched_at_default(config: StudyConfig) -> dict[str, Value]:
    """Searched paths that the config gives no value of its own, with the default that a single trial takes."""
    given = flat(config.model_dump(exclude_unset=True, exclude={"search"}))
    values = flat(config.model_dump(exclude={"search"}))
    return {path: values[path] for path in config.search if path not in given}


def _with_setting(tree: Tree, setting: str) -> Tree:
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise input_error(
            ConfigError, "--set", "must be written path=value", "e.g. --set optim.lr=5e-4", setting
        )
    value = parse_yaml(text, f"--set {path}")
    if path.startswith("search."):
        search = dict(tree.get("search") or {})
        search[path.removeprefix("search.")] = value
        return {**tree, "search": search}
    return with_values(tree, {path.strip(): value})


def _make_paths_absolute(tree: Tree) -> None:
    """Ray changes the folder of its workers, so that a relative path would mean another place there."""
    for section, key in (("storage", "path"), ("data", "root"), ("teacher", "checkpoint")):
        place = tree.get(section)
        if isinstance(place, dict) and isinstance(place.get(key), str):
            place[key] = str(Path(place[key]).expanduser().absolute())
    if isinstance(tree.get("storage", {}), dict):
        storage = tree.setdefault("storage", {})
        storage.setdefault("path", str(Path(StorageSection().path).absolute()))


def _validate(model: type[_Model], tree: Tree) -> _Model:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(problems_of(error, model)) from None


def _validate_the_rest(tree: Tree, error: ValidationError) -> StudyConfig | None:
    """The config without the values that are wrong, so that rules between keys are checked all the same."""
    rest = copy.deepcopy(tree)
    for details in error.errors(include_url=False):
        place: Any = rest
        for part in details["loc"][:-1]:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(details["loc"][-1], None)
    try:
        return StudyConfig.model_validate(rest)
    except ValidationError:
        return None


def cross_problems(config: StudyConfig, blocks: int | None = None) -> list[Problem]:
    """Rules that need more than one key, for the base values and for every end of the search.

    `blocks` of the student, once they are known, bound its decompositions.
    """
    found = _search_path_problems(config)
    if found:
        return found
    found = _baseline_problems(config)
    if config.search and config.data.val_fraction == 0:
        rule = "must be > 0 for a search, which selects by validation accuracy"
        found.append(Problem("data.val_fraction", rule, "hold out e.g. 0.1", "0"))
    base = _trial_problems(config, config.usual_sample, blocks)
    found += [_in_search(problem, config) for problem in base]
    for path, sample in config.corner_samples():
        fresh = _new(_trial_problems(config, sample, blocks), base)
        found += [replace(problem, path=_search_place(path, problem.path)) for problem in fresh]
    return list(dict.fromkeys(found))


def _in_search(problem: Problem, config: StudyConfig) -> Problem:
    """A searched path's base value is never used: what is wrong with it is in the search."""
    return (
        replace(problem, path=f"search.{problem.path}")
        if problem.path in config.search
        else problem
    )


def _search_place(searched: str, path: str) -> str:
    return f"search.{searched}" if searched == path else f"search.{searched}: {path}"


def _trial_problems(config: StudyConfig, sample: Sample, blocks: int | None) -> list[Problem]:
    try:
        return plan.problems(config.trial(sample), blocks)
    except ConfigError as error:
        return list(error.problems)


def _search_path_problems(config: StudyConfig) -> list[Problem]:
    known = [path for path in all_paths(TrialConfig) if not _is_section(path)]
    found: list[Problem] = []
    for path in config.search:
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else "name a key of the config by its path"
            found.append(Problem(f"search.{path}", "is not a path that can be searched", remedy))
        elif path.startswith(_SHARED) and path not in _NOT_SHARED:
            rule = "belongs to what all trials of a study share, and cannot be searched"
            found.append(Problem(f"search.{path}", rule, "set it for the whole study"))
    return found


def _baseline_problems(config: StudyConfig) -> list[Problem]:
    known = all_paths(TrialConfig)
    found = [
        Problem(f"study.baseline.{path}", "is not a path of the config", "name a key by its path")
        for path in config.study.baseline
        if path not in known
    ]
    try:
        config.baseline()
    except ConfigError as error:
        problems = [problem for problem in error.problems if problem.path in known]
        found += [replace(problem, path=f"study.baseline.{problem.path}") for problem in problems]
    return found


def _is_section(path: str) -> bool:
    model: type[BaseModel] = TrialConfig
    for part in path.split("."):
        inner = section_model(model.model_fields[part].annotation)
        if inner is None:
            return False
        model = inner
    return True


def _new(found: Iterable[Problem], old: Iterable[Problem]) -> list[Problem]:
    """Those that `old` does not have."""
    known = set(old)
    return [problem for problem in found if problem not in known]
