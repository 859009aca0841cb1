"""Which hyperparameters mattered, by Optuna's PED-ANOVA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FixedTrial, FrozenTrial, create_trial

from study.results import StudyResults, TrialRow
from study.space import SearchRange

FEWEST_TRIALS = 20
_FEWEST_BEST = 5
"""Trials among the best that PED-ANOVA needs to be stable, as its documentation says."""
_BEST_SHARE = 0.1


def importances(results: StudyResults, search: Mapping[str, SearchRange]) -> dict[str, float] | str:
    """Searched path → its share in telling the best tenth (five, of few) of the trials from the others.

    Pruned trials count with their best epoch: they tell where it is bad. A sentence says why where
    there is no answer. The ledger is asked, not Optuna's storage: it holds the same trials, and a page
    can be made where the storage cannot be reached.
    """
    if len(search) < 2:
        return "They compare searched hyperparameters; fewer than two were searched."
    rows = [row for row in results.of("trial") if row.state in ("complete", "pruned")]
    trials = [trial for row in rows if (trial := _trial(row, search)) is not None]
    if len(trials) < FEWEST_TRIALS:
        return (
            f"Too few trials to tell: {len(trials)} of {FEWEST_TRIALS} that it takes have ended with "
            "a validation accuracy."
        )
    if len({trial.value for trial in trials}) == 1:
        return "All trials are equally good."
    return _evaluated(trials)


def _evaluated(trials: list[FrozenTrial]) -> dict[str, float]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    share = max(_BEST_SHARE, _FEWEST_BEST / len(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may call itself experimental
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        return get_param_importances(study, evaluator=evaluator)


def _trial(row: TrialRow, search: Mapping[str, SearchRange]) -> FrozenTrial | None:
    """The trial as Optuna knows it; None without an accuracy, or with nothing that was drawn."""
    drawn = {path: row.params[path] for path in search if path in row.params}
    if row.value is None or not drawn:
        return None
    fixed = FixedTrial(drawn)
    for path in drawn:
        search[path].suggest(fixed, path)
    return create_trial(value=row.value, params=fixed.params, distributions=fixed.distributions)
