"""What must hold between the keys of a study: for the base values, every value of the search, and the references."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from study.baselines import baseline_search
from study.budget import epochs_of_a_trial
from study.draws import BlocksOf, Draws
from study.idle import idle_problems
from study.problems import all_paths, keys_of, near_key
from study.pruner_rules import pruner_problems
from study.results import Value
from study.schema import BaselineName, StudyConfig
from study.screening import screening_search
from study.space import SearchRange, Space
from trainable import rules
from trainable.config import TrialConfig
from trainable.errors import ConfigError, Problem
from trainable.methods import METHODS
from trainable.rules.reading import READINGS

_SHARED = ("data.", "teacher.", "resources.", "train.workers", "train.launcher")
_NOT_SHARED = ("data.batch_size", "data.augment.")
_LISTS = (
    "data.augment.resized_crop",
    "student.cuts",
    "distill.feature_weights",
    "distill.stage_epochs",
    "optim.milestones",
)
_ONE_NUMBER = {
    "distill.feature_weights": "distill.feature_scale",
    "distill.stage_epochs": "distill.stage_split",
}
"""Keys that stand for a list in a search."""
_BASELINE = "study.baseline"
_NUMBER = "a range of numbers, low < high, that every trial reads"
KNOWS_OTHERS = ("tpe", "gp")
"""The samplers that draw by trials of other studies."""
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
    space = Space(config, config.ranges, candidates)
    found += _sampler_problems(config, space, unknown)
    found += _warm_start_problems(config, unknown)
    found += pruner_problems(config, unknown)
    draws = Draws(config, space, blocks_of)
    found += draws.unread(unknown)
    found += draws.wrong_first_trials(unknown)
    needed = draws.without_base(unknown)
    found += needed
    for rule in rules.RULES:
        if not rule.reads_any([*unknown, *(problem.path for problem in needed)]):
            found += draws.broken(rule)
    found += _teacher_training_problems(config, unknown)
    found += _baseline_problems(config, blocks_of, unknown)
    found += _answer_problems(config, unknown)
    found += _searched_baseline_problems(config, blocks_of, unknown, found)
    found += _screening_problems(config, blocks_of, unknown, found)
    found += _idle_problems(config, unknown, found)
    return list(dict.fromkeys(found))


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
        remedy = f"set {path} for the whole study"
        if prefix == "search" and path in _ONE_NUMBER:
            remedy = f"search {_ONE_NUMBER[path]} in its place, or {remedy}"
        return Problem(place, "holds no single value", remedy)
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


def _warm_start_problems(config: StudyConfig, unknown: Collection[str]) -> list[Problem]:
    """Other studies' trials have an accuracy alone, and most samplers draw by what is their own."""
    section = config.study
    if not section.warm_start or any(path.startswith("study") for path in unknown):
        return []
    path, found = "study.warm_start", list[Problem]()
    if section.sampler not in KNOWS_OTHERS:
        rule = (
            f"must be of use to the sampler, and {section.sampler} draws by no other study's trials"
        )
        found.append(Problem(path, rule, f"use {' or '.join(KNOWS_OTHERS)}, or remove it"))
    if len(section.objectives) > 1 or section.constraints.bounds:
        rule = "must be without several objectives and constraints: of other trials the accuracy alone is known"
        found.append(Problem(path, rule, "remove it, or them"))
    return found


def _sampler_problems(config: StudyConfig, space: Space, unknown: Collection[str]) -> list[Problem]:
    """CMA-ES has one objective, and draws numbers that every trial reads: all else is drawn at random."""
    section = config.study
    is_known = not any(
        path.startswith(("study", "search")) or path in config.search for path in unknown
    )
    if section.sampler != "cmaes" or not config.search or not is_known:
        return []
    path, found, remedy = "study.sampler", list[Problem](), "use tpe, gp or nsga2"
    if (count := len(section.objectives)) > 1:
        rule = f"must have several objectives, of which there are {count}, and CMA-ES has one"
        found.append(Problem(path, rule, remedy, "cmaes"))
    numbers = [path for path, values in config.search.items() if values.is_number]
    deciders = [
        key for number in numbers if number in READINGS for key in READINGS[number].decided_by
    ]
    if not numbers:
        rule = "must draw choices, since search has no number, and CMA-ES draws numbers alone"
        found.append(Problem(path, rule, remedy, "cmaes"))
    elif not space.numbers and not _reads(*deciders, unknown=unknown):
        rule = f"must have {_NUMBER}, as CMA-ES draws nothing else, and search has none"
        found.append(Problem(path, rule, remedy, "cmaes"))
    return found


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


def _answer_problems(config: StudyConfig, unknown: Collection[str]) -> list[Problem]:
    """What is wrong with how long the search goes on, and how many of its trials are trained again."""
    found: list[Problem] = []
    study, searches = config.study, bool(config.search)
    if searches and not _reads("study.epoch_budget", "train.epochs", unknown=unknown):
        budget, needed = study.epoch_budget, epochs_of_a_trial(config)
        if budget is not None and budget < needed:
            rule = f"must be >= {needed}, the epochs of one trial"
            found.append(Problem("study.epoch_budget", rule, "raise it", str(budget)))
    replicates = study.replicates
    if replicates is not None and not _reads("study.replicates", "study.trials", unknown=unknown):
        most = study.trials if searches else 1
        if replicates.finalists > most:
            rule = f"must be <= {most}, the trials of the study"
            place = "study.replicates.finalists"
            found.append(Problem(place, rule, "lower it", str(replicates.finalists)))
    return found


def _searched_baseline_problems(
    config: StudyConfig, blocks_of: BlocksOf, unknown: Collection[str], known: Collection[Problem]
) -> list[Problem]:
    """What is wrong with the searches of baselines beyond what is `known` to be wrong with the study's."""
    found: list[Problem] = []
    if _reads("study.baseline", "study.baselines", "search", unknown=unknown):
        return found
    for name in config.study.baselines:
        place, remedy = f"study.baselines.{name}", "remove it"
        if not config.search:
            rule = "needs a search of the study, beside which it is searched"
            found.append(Problem(place, rule, remedy))
        elif METHODS[name].teacher and config.teacher is None:
            found.append(Problem(place, "needs a teacher", f"give teacher.model, or {remedy}"))
        elif any(problem.path.startswith(("search.", _BASELINE)) for problem in known):
            continue  # its ranges, or its base values, are not known
        elif not (searched := baseline_search(config, name)).search:
            rule = "has nothing to search: its trials read none of the searched paths"
            found.append(Problem(place, rule, f"search e.g. optim.lr, or {remedy}"))
        elif config.study.sampler == "cmaes" and not searched.space.numbers:
            rule = f"must search {_NUMBER}, since study.sampler is cmaes"
            remedy = f"search e.g. optim.lr, use tpe, gp or nsga2, or {remedy}"
            found.append(Problem(place, rule, remedy, ", ".join(searched.search)))
        else:
            wrong = _baseline_search_problems(config, name, blocks_of, unknown)
            found += [
                replace(problem, rule=f"{problem.rule} (for the baseline {name})")
                for problem in wrong
                if problem not in known
            ]
    return found


def _idle_problems(
    config: StudyConfig, unknown: Collection[str], known: Collection[Problem]
) -> list[Problem]:
    """Keys that nothing has a use for, beyond those that a rule refuses anyway."""
    if _reads("search", "study.baseline", "study.baselines", unknown=unknown):
        return []
    if any(problem.path.startswith(("search.", _BASELINE)) for problem in known):
        return []  # who reads what is not known
    refused = {problem.path for problem in known}
    return [problem for problem in idle_problems(config, unknown) if problem.path not in refused]


def _screening_problems(
    config: StudyConfig, blocks_of: BlocksOf, unknown: Collection[str], known: Collection[Problem]
) -> list[Problem]:
    """What is wrong with how trials are screened beyond what is `known` to be wrong with the trials."""
    screening, place = config.study.screening, "study.screening"
    if screening is None or _reads(place, "search", "train.epochs", unknown=unknown):
        return []
    if not config.search:
        return [Problem(place, "needs a search, whose trials it screens", "remove it")]
    epochs, searched = screening.epochs, "train.epochs" in config.search
    if epochs is not None and searched:
        rule = "must be without a search of train.epochs: all trials are screened alike"
        return [Problem(f"{place}.epochs", rule, "remove it, or that")]
    if epochs is not None and epochs > config.train.epochs:
        rule = f"must be <= {config.train.epochs}, the epochs of a trial"
        return [Problem(f"{place}.epochs", rule, "lower it", str(epochs))]
    if epochs in (None, config.train.epochs) and screening.subset == 1:
        rule = "must cost less than the trial"
        return [Problem(place, rule, "give it fewer epochs, or a subset of the pictures")]
    if any(problem.path.startswith("search.") for problem in known):
        return []  # its ranges are not known
    screened = screening_search(config)
    draws = Draws(screened, screened.space, blocks_of)
    found = [
        problem
        for rule in rules.RULES
        if not rule.reads_any(unknown)
        for problem in draws.broken(rule)
    ]
    return [
        replace(problem, rule=f"{problem.rule} (in a screening of {screened.train.epochs} epochs)")
        for problem in found
        if problem not in known
    ]


def _baseline_search_problems(
    config: StudyConfig, name: BaselineName, blocks_of: BlocksOf, unknown: Collection[str]
) -> list[Problem]:
    """What is wrong with the trials that are drawn for a baseline."""
    searched = baseline_search(config, name)
    draws = Draws(searched, searched.space, blocks_of)
    found = draws.without_base(unknown)
    for rule in rules.RULES:
        if not rule.reads_any([*unknown, *(problem.path for problem in found)]):
            found += draws.broken(rule)
    return found


def _reads(*paths: str, unknown: Collection[str]) -> bool:
    """Whether one of these keys or sections, or a part of one, is not known."""
    return any(
        path == wrong or path.startswith(f"{wrong}.") or wrong.startswith(f"{path}.")
        for path in paths
        for wrong in unknown
    )
