"""What a study took, and what stopping trials early saved."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from study.report.evidence import Evidence
from study.results import TrialRow
from trainable.records import TRAIN_PEAK_MEMORY


@dataclass(frozen=True)
class TrialCost:
    """What one trial took."""

    row: TrialRow
    planned: int | None
    """Epochs, had it not been stopped; None where that is not known."""
    gpus: float
    """GPUs, or the share of one, that it held."""

    @property
    def hours(self) -> float:
        """Wall time."""
        return self.row.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        """Wall time times the GPUs held."""
        return self.hours * self.gpus

    @property
    def epochs_saved(self) -> int:
        """By pruning."""
        if self.row.state != "pruned" or self.planned is None:
            return 0
        return max(0, self.planned - self.row.epochs)

    @property
    def hours_saved(self) -> float:
        """At the pace of its own epochs."""
        return self.hours / self.row.epochs * self.epochs_saved if self.row.epochs else 0.0


@dataclass(frozen=True)
class Cost:
    """What a study took."""

    trials: tuple[TrialCost, ...]

    @property
    def hours(self) -> float:
        """Of all trials, one after the other."""
        return sum(trial.hours for trial in self.trials)

    @property
    def gpu_hours(self) -> float:
        """Of all trials; 0 on CPUs."""
        return sum(trial.gpu_hours for trial in self.trials)

    @property
    def pruned(self) -> int:
        """Trials that were stopped early."""
        return sum(trial.row.state == "pruned" for trial in self.trials)

    @property
    def epochs_saved(self) -> int:
        """That the pruned trials were not trained for."""
        return sum(trial.epochs_saved for trial in self.trials)

    @property
    def hours_saved(self) -> float:
        """An estimate, at each pruned trial's own pace."""
        return sum(trial.hours_saved for trial in self.trials)


def cost_of(evidence: Evidence) -> Cost:
    """Every training of the study; a teacher that was not trained here cost nothing."""
    return Cost(
        tuple(
            TrialCost(row, evidence.epochs_planned(row), _gpus(evidence, row))
            for row in evidence.results.rows
            if row.epochs or row.state == "failed"
        )
    )


def bytes_on_disk(folder: Path) -> int:
    """What a study's folder takes, as `du` counts: in blocks, and a file with two names once."""
    blocks: dict[int, int] = {}
    # A study may be at work: a file may go before it is looked at, and a folder before it is walked.
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                state = Path(place, name).lstat()
                blocks[state.st_ino] = state.st_blocks
    return 512 * sum(blocks.values())


def peak_gib(evidence: Evidence) -> float | None:
    """Most GPU memory that any trial took, in GiB; None on CPUs."""
    peaks = [
        value
        for row in evidence.results.rows
        for _, value in evidence.series(row, TRAIN_PEAK_MEMORY)
    ]
    return max(peaks, default=None)


def _gpus(evidence: Evidence, row: TrialRow) -> float:
    """A trial that ran on a GPU says so by its peak memory."""
    if not evidence.series(row, TRAIN_PEAK_MEMORY):
        return 0.0
    if evidence.config is None:
        return 1.0
    each = evidence.config.resources.gpus
    return evidence.config.train.workers * (1.0 if each is None else each)
