"""The student that a finished study hands out: its answer, or another trial whose weights are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from study.config import StudyConfig
from study.folder import kept_config
from study.jobs import Job
from study.ledger import find_results
from study.leftovers import KEPT_TRIALS, kept_trials
from study.replicates import representative
from study.results import StudyResults, TrialRow
from trainable import tasks
from trainable.config import TeacherConfig, TrialConfig
from trainable.errors import InputError, input_error
from trainable.methods import METHODS


@dataclass(frozen=True)
class Choice:
    """A training of a study, and what it has kept."""

    config: StudyConfig
    results: StudyResults
    row: TrialRow
    """A trial of the search, or a replicate of the winner."""

    @property
    def searched(self) -> TrialRow:
        """The trial of the search that it is, or repeats."""
        if self.row.role == "trial":
            return self.row
        return next(row for row in self.results.best_trials if row.label == self.row.of)

    @property
    def trial(self) -> TrialConfig:
        """Everything that the trial depended on."""
        return Job.of_row(self.row, self.config).config(self.config)

    @property
    def teacher(self) -> TeacherConfig | None:
        """That it has learned from; None where its method has none, whatever the study has."""
        trial = self.trial
        return trial.teacher if METHODS[trial.distill.method].teacher else None

    @property
    def weights(self) -> Path:
        """Of its best student."""
        return tasks.best_weights(Path(self.row.directory))


def choose(root: Path, name: str, trial: int | None = None) -> Choice:
    """The answer of the study `name` under `root`, or this trial; InputError if it cannot be had.

    The answer is the winner's first replicate, which has learned from all training pictures; without any, the winner.
    """
    results = find_results(root, name)
    row = _answer(results) if trial is None else _trial(results, trial)
    choice = Choice(kept_config(root, name), results, row)
    if not choice.weights.is_file():
        if trial is None:
            rule, remedy = "must hold the winner's weights", "restore that file"
            raise input_error(InputError, str(choice.weights), rule, remedy)
        kept = [row.number for row in kept_trials(results) if row.number != trial]
        rule = f"must be one whose weights are kept, as those of the best {KEPT_TRIALS} are"
        raise input_error(InputError, "--trial", rule, f"choose from {_numbers(kept)}", trial)
    return choice


def _answer(results: StudyResults) -> TrialRow:
    if not results.finished:
        rule = "must have finished, before its winner is known"
        remedy = f"`kd-study resume {results.name}` goes on; `kd-study export` takes a trial of it with --trial"
        raise input_error(InputError, results.name, rule, remedy)
    answer = representative(results)
    if answer is None:
        rule = "must have a trial that is complete"
        remedy = f"`kd-study report {results.name}` says what became of them"
        raise input_error(InputError, results.name, rule, remedy)
    return answer


def _trial(results: StudyResults, number: int) -> TrialRow:
    row = results.row("trial", number)
    if row is None or row.state != "complete":
        complete = sorted(row.number for row in results.best_trials)
        remedy = f"choose from {_numbers(complete)}" if complete else "there is none yet"
        rule = (
            "must be a complete trial" if row is None else f"must be complete, and is {row.state}"
        )
        raise input_error(InputError, "--trial", rule, remedy, number)
    return row


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
