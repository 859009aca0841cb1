"""Baselines at their own best: the search that each of `study.baselines` is given.

A student that was searched for beside one that was not is no comparison. So a baseline may have trials of its
own: the study's sampler draws those searched paths that the baseline's trials read, and an Optuna study of its
own, `<study>/<name>`, remembers them.
"""

from __future__ import annotations

from study.problems import parse_or_refuse
from study.schema import BaselineName, StudyConfig
from study.space import SearchRange
from study.tree import with_values
from trainable.config import TrialConfig
from trainable.methods import METHODS

_SECTION = "distill."
_EVENLY = SearchRange(uniform=(0.0, 1.0))
"""Of KD's α, where the study does not search it."""


def baseline_search(config: StudyConfig, name: BaselineName) -> StudyConfig:
    """The study of one baseline: its ranges, and its base values.

    Of `distill` it has what its method reads; `kd` always searches α. Where `none` searches no path, it has the
    base values with `study.baseline` over them. Only of a config whose search is valid; ConfigError names the keys
    of `study.baseline` that are wrong.
    """
    keys = {_SECTION + key for key in METHODS[name].reads}
    search = {
        path: values
        for path, values in config.search.items()
        if path in keys or not path.startswith(_SECTION)
    }
    base = config.model_dump(include=set(TrialConfig.model_fields))
    given = {key: base["distill"][key] for key in METHODS[name].takes}
    if name == "kd":
        search.setdefault("distill.alpha", _EVENLY)
    else:
        base = with_values(base, config.study.baseline)
    trial = parse_or_refuse(TrialConfig, {**base, "distill": {"method": name, **given}})
    changed = {
        "name": f"{config.study.name}/{name}",  # as no study can be named
        "trials": config.study.baselines.get(name, 1),
        "objectives": ("accuracy",),
        "first_trials": (),
        "warm_start": (),
        "screening": None,
    }
    section = config.study.model_copy(update=changed)
    sections = {field: getattr(trial, field) for field in TrialConfig.model_fields}
    whole = config.model_copy(update={**sections, "study": section, "search": search})
    read = {path: values for path, values in search.items() if path not in whole.space.unread}
    return whole.model_copy(update={"search": read})
