"""Keys that are given in vain: nothing in the study has a use for them.

That they were ignored in silence would leave a person to believe in an effect that they do not have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import reduce
from typing import Any

from study.baselines import baseline_search
from study.problems import shown, touches
from study.schema import StudyConfig
from study.space import Space
from trainable.errors import Problem
from trainable.rules.reading import READINGS, Reading, at_default

_METHOD = "distill.method"


def idle_problems(config: StudyConfig, unknown: Collection[str] = ()) -> list[Problem]:
    """One for each key with another value than its default that no trial and no baseline has a use for.

    Only of a config whose search and baselines are valid; what an `unknown` key decides is left out.
    """
    given = [
        path
        for path, reading in READINGS.items()
        if path not in config.search and at_default(config, path) != config
        if not _may_be_idle(config, reading) and not touches(unknown, (path, *reading.decided_by))
    ]
    spaces = list(_spaces(config)) if given else []
    idle = [path for path in given if not any(space.has_use(path) for space in spaces)]
    return [_problem(config, path) for path in idle]


def _spaces(config: StudyConfig) -> Iterator[Space]:
    """Of the study's own trials, of the student without a teacher beside a search, and of baselines' searches."""
    yield config.space
    if config.search:
        yield Space(config.baseline(), {})
    for name in config.study.baselines:
        yield baseline_search(config, name).space


def _may_be_idle(config: StudyConfig, reading: Reading) -> bool:
    """What a method reads may stay where only the student alone is trained, as α and λ may: any config's can be."""
    is_alone = config.distill.method == "none" and _METHOD not in config.search
    return is_alone and _METHOD in reading.decided_by


def _problem(config: StudyConfig, path: str) -> Problem:
    default = _at(at_default(config, path), path)
    remedy = "remove it" if default is None else f"remove it (the default is {shown(default)})"
    rule = f"is read by no trial of this study, only where {READINGS[path].where}"
    return Problem(path, rule, f"{remedy}, or change what decides it", shown(_at(config, path)))


def _at(config: StudyConfig, path: str) -> Any:
    return reduce(getattr, path.split("."), config)
