"""What a search may spend in epochs."""

from __future__ import annotations

from collections.abc import Collection

from study.results import StudyResults
from study.schema import StudyConfig


def longest(config: StudyConfig) -> int:
    """The most epochs that a trial of the search has of its own."""
    searched, own = config.search.get("train.epochs"), config.train.epochs
    given = (own,) if searched is None else searched.candidates
    return max((epochs for epochs in given if isinstance(epochs, int)), default=own)


def epochs_of_a_trial(config: StudyConfig) -> int:
    """The most that a trial of the search trains for, with its screening."""
    own, screening = longest(config), config.study.screening
    if screening is None:
        return own
    return own + (own if screening.epochs is None else screening.epochs)


def has_room(
    config: StudyConfig, results: StudyResults, resting: Collection[int], running: int
) -> bool:
    """Whether one more trial keeps within `study.epoch_budget`, whatever becomes of those that run.

    `resting` are the numbers of those that have ended or wait; what they trained counts, under other drivers too, and
    each that runs as if it were not stopped. What an extended study had trained before does not count.
    """
    if config.study.epoch_budget is None:
        return True
    whole = epochs_of_a_trial(config)
    screened = {row.number: row.epochs for row in results.of("screening")}
    rows = {row.number: row for row in results.of("trial") if row.state != "running"}
    spent = sum(
        rows[number].epochs if number in rows else 0 if number in screened else whole
        for number in resting
    ) + sum(screened.get(number, 0) for number in resting)
    return spent - results.epochs_before + (running + 1) * whole <= config.study.epoch_budget
