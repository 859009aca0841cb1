"""What trials leave on disk, and what of it stays.

| a trial                                                                         | its checkpoints | its best student |
|---------------------------------------------------------------------------------|-----------------|------------------|
| that runs, or that a resumed study goes on with                                 | stay            | stays            |
| of the `KEPT_TRIALS` best so far, on the front, or tested; teacher and baseline | go at its end   | stays            |
| the best of a baseline's own search so far                                      | go at its end   | stays            |
| a complete replicate: of the winner, or not tested yet                          | go at its end   | stays            |
| any other, and a screening                                                      | go at its end   | goes at its end  |

The curve, the statistics and the ledger's row of all of them stay. Cut short anywhere, it is done again by
the next look.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import optuna

from study.mirror import Mirror
from study.optuna_study import NO_BASELINES, Beside, ended_states
from study.results import Key, State, StudyResults, TrialRow
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
        self,
        study: optuna.Study | None,
        teacher_weights: Path | None,
        mirror: Mirror,
        beside: Beside = NO_BASELINES,
    ) -> None:
        """`study` is Optuna's where there is a search; `teacher_weights` are where the teacher's are kept."""
        self._weights, self._mirror = teacher_weights, mirror
        self._studies: dict[str, optuna.Study] = {**beside}
        """By `TrialRow.of`: the study's own has no name."""
        if study is not None:
            self._studies[""] = study
        self._seen: tuple[TrialRow, ...] = ()
        self._done: set[tuple[Key, bool]] = set()
        """Which row, and whether its best student stayed."""

    def clear(self, results: StudyResults) -> None:
        """Remove what nobody will read again; what cannot be removed is said in the study's log.

        AwayError, with nothing removed, while Optuna's storage cannot be asked what it was told.
        """
        if results.rows is self._seen:
            return
        known = {of: ended_states(study) for of, study in self._studies.items()}
        self._seen = results.rows
        for row, is_best in _with_fate(results):
            key = (row.key, is_best)
            if key in self._done or not self._is_over(row, known):
                continue
            try:
                tasks.clear(Path(row.directory), keep_best=is_best)
            except OSError as error:
                _LOG.warning("%s left files that could not be removed: %s", row.label, error)
            self._mirror.forget(Path(row.directory), keep_best=is_best)
            self._done.add(key)

    def _is_over(self, row: TrialRow, known: Mapping[str, Mapping[int, State]]) -> bool:
        """Whether no driver will go on with it: Optuna hands out again what it was not told the end of."""
        if row.role == "teacher":
            is_kept = self._weights is not None and self._weights.exists()
            return row.state == "complete" and is_kept
        if row.is_searched and row.of in known:
            return row.state != "running" and row.number in known[row.of]
        return row.state != "running"


def _with_fate(results: StudyResults) -> Iterator[tuple[TrialRow, bool]]:
    """Every row, and whether its best student stays."""
    searched = {row.of for row in results.rows if row.role == "baseline" and row.of}
    of_baselines = (results.best_of_baseline(name) for name in searched)
    best = {row.key for row in (*kept_trials(results), *of_baselines) if row}
    winner = results.winner
    for row in results.rows:
        is_tested = row.test_accuracy is not None
        if row.is_searched:
            yield row, row.key in best or is_tested
        elif row.role == "screening":
            yield row, False
        elif row.role == "replicate":
            is_answer = winner is not None and row.of == winner.label
            yield row, row.state == "complete" and (is_answer or not is_tested)
        else:
            yield row, True
