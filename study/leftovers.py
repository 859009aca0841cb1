"""What trials leave on disk, and what of it stays.

| a trial                                                                         | its checkpoints | its best student |
|---------------------------------------------------------------------------------|-----------------|------------------|
| that runs, or that a resumed study goes on with                                 | stay            | stays            |
| of the `KEPT_TRIALS` best so far, on the front, or tested; teacher and baseline | go at its end   | stays            |
| any other                                                                       | go at its end   | goes at its end  |

The curve, the statistics and the ledger's row of all of them stay. Cut short anywhere, it is done again by
the next look.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import optuna

from study.mirror import Mirror
from study.results import Role, State, StudyResults, TrialRow
from study.search import ended_states
from trainable import tasks

KEPT_TRIALS = 3
"""Best trials whose weights are kept, in the end also as artifacts of their MLflow runs, as those on the front are."""

_LOG = logging.getLogger(__name__)


def kept_trials(results: StudyResults) -> tuple[TrialRow, ...]:
    """The trials whose weights are of use: the best, and of several objectives those that no other betters."""
    best = results.best_trials[:KEPT_TRIALS]
    return (*best, *(row for row in results.front if row not in best))


class Leftovers:
    """Of a study's trials, as one look after the other finds them."""

    def __init__(
        self, study: optuna.Study | None, teacher_weights: Path | None, mirror: Mirror
    ) -> None:
        """`study` is Optuna's where there is a search; `teacher_weights` are where the teacher's are kept."""
        self._study, self._weights, self._mirror = study, teacher_weights, mirror
        self._seen: tuple[TrialRow, ...] = ()
        self._done: set[tuple[Role, int, bool]] = set()
        """Role, number, and whether the best student stayed."""

    def clear(self, results: StudyResults) -> None:
        """Remove what nobody will read again; what cannot be removed is said in the study's log.

        AwayError, with nothing removed, while Optuna's storage cannot be asked what it was told.
        """
        if results.rows is self._seen:
            return
        known = None if self._study is None else ended_states(self._study)
        self._seen = results.rows
        best = {row.number for row in kept_trials(results)}
        for row in results.rows:
            is_best = row.role != "trial" or row.number in best or row.test_accuracy is not None
            key = (row.role, row.number, is_best)
            if key in self._done or not self._is_over(row, known):
                continue
            try:
                tasks.clear(Path(row.directory), keep_best=is_best)
            except OSError as error:
                _LOG.warning("%s left files that could not be removed: %s", row.label, error)
            self._mirror.forget(Path(row.directory), keep_best=is_best)
            self._done.add(key)

    def _is_over(self, row: TrialRow, known: Mapping[int, State] | None) -> bool:
        """Whether no driver will go on with it: Optuna hands out again what it was not told the end of."""
        if row.role == "teacher":
            is_kept = self._weights is not None and self._weights.exists()
            return row.state == "complete" and is_kept
        if row.role == "trial" and known is not None:
            return row.state != "running" and row.number in known
        return row.state != "running"
