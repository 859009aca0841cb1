"""What a study would find around its config: its folder, and the stores that it names.

`kd-study run` finds all of it when it opens them. Here nothing is made, nothing is kept and no Ray is started, so
that `kd-study validate` can tell of it, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from study.checks import Checks
from study.config import Draft, StudyConfig
from study.folder import check_same_study
from study.ledger import LEDGER
from study.optuna_storage import database_problems
from study.store import check_store
from trainable.errors import Problem


def around_problems(draft: Draft) -> list[Problem]:
    """What is wrong around a config, as far as it can be read."""
    if draft.config is None:
        return []
    config, checks = draft.config, Checks(Draft(draft.config, draft.unknown))
    if not draft.unknown and config.bucket is None:
        checks.of((), lambda: check_same_study(config))
    checks.add(checks.of(("storage",), lambda: database_problems(config)) or [])
    uri = config.tracking.uri
    if uri is not None:
        checks.of(("tracking",), lambda: check_store(uri, config.tracking.experiment))
    return list(checks.problems)


def unchecked(config: StudyConfig) -> Iterator[str]:
    """What only a run finds out, in a few words each."""
    yield "whether another kd-study is at work on it"
    yield "whether a trial finds the memory that it needs"
    if "RAY_ADDRESS" in os.environ:
        yield "the cluster of RAY_ADDRESS (the one above is this machine)"
    if config.bucket is not None:
        yield "whether the bucket holds another study of this name"
    if (config.folder / LEDGER).exists():
        yield "whether MLflow still has its run"
    if config.storage.optuna is not None and config.search:
        yield "whether storage.optuna holds another study of this name"
