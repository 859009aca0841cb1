"""Replicates: what the search found, trained again with other seeds, on all training pictures.

A search's best validation accuracy is the largest of many, each with luck in it: it says which hyperparameters
to take, and too much of how good they are. What they are worth is measured by trainings that nothing was
selected by. So a replicate holds no pictures out, keeps its last epoch's student, and is tested once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice

from study.results import StudyResults, TrialRow
from study.schema import StudyConfig
from trainable.config import TrialConfig

_SEEDS_APART = 1000
"""Between the seeds of two studies."""


def replicate_seeds(study_seed: int, own: int, seeds: int) -> list[int]:
    """The first `seeds` numbers after 1000 × `study_seed`, without a trial's `own` seed."""
    after = count(_SEEDS_APART * study_seed + 1)
    return list(islice((seed for seed in after if seed != own), seeds))


def replicate_config(study: StudyConfig, trial: TrialConfig, number: int) -> TrialConfig:
    """A trial's config with the seed of its replicate `number`, and no picture held out."""
    seed = replicate_seeds(study.study.seed, trial.train.seed, number + 1)[number]
    train = trial.train.model_copy(update={"seed": seed})
    data = trial.data.model_copy(update={"val_fraction": 0.0})
    return trial.model_copy(update={"train": train, "data": data})


def finalists(study: StudyConfig, results: StudyResults) -> Sequence[TrialRow]:
    """The trials that are tested, by their replicates or themselves; validation has chosen them."""
    replicates = study.study.replicates
    return results.best_trials[: 1 if replicates is None else replicates.finalists]


def baselines_of(results: StudyResults) -> list[TrialRow]:
    """The student without a teacher, and the best of each baseline's own search."""
    searched = dict.fromkeys(row.of for row in results.rows if row.role == "baseline" and row.of)
    found = (*results.of("baseline"), *map(results.best_of_baseline, searched))
    return [row for row in found if row is not None]


def test_accuracies(results: StudyResults, row: TrialRow) -> tuple[float, ...]:
    """Of a trial's or a baseline's replicates that were tested; without replicates, its own if it was tested itself."""
    replicates = results.of("replicate", row.label)
    tested = (one.test_accuracy for one in replicates or (row,))
    return tuple(accuracy for accuracy in tested if accuracy is not None)


def representative(results: StudyResults) -> TrialRow | None:
    """Whose weights are the study's answer: the winner's first replicate, or the winner's own."""
    return next(iter(results.replicates_of_winner), results.winner)
