"""The ledger of a study: every trial with its state, kept in one JSON file in the study's folder.

The driver writes it after every change (write, then rename), `kd-study report` reads it, and a
resumed study starts from it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from study.entries import STUDY_RUN, Line
from trainable.errors import InputError, input_error
from trainable.records import Finding

Role = Literal["teacher", "baseline", "trial", "replicate"]
State = Literal["running", "complete", "pruned", "failed"]
Value = bool | int | float | str


def place_of(role: Role, number: int) -> Path:
    """Where a trial's folder lies in that of its study."""
    return Path(f"{role}s") / f"{number:04d}" if role in ("trial", "replicate") else Path(role)


class TrialRow(BaseModel):
    """One trial, as the leaderboard shows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    number: int
    """Counted from 0 within its role."""
    state: State = "running"
    params: dict[str, Value] = {}
    """The searched values by dotted path, and `distill.k`/`distill.n` beside a searched decomposition."""
    epochs: int = 0
    """Epochs that were reported."""
    value: float | None = None
    """Best validation accuracy of an epoch, in [0, 1]."""
    best_epoch: int | None = None
    val_eer: float | None = None
    """Equal error rate over the unseen classes' training pictures at the best epoch; None without any."""
    test_accuracy: float | None = None
    """Measured once, at the end of the study; None for a trial that was not tested."""
    test_eer: float | None = None
    """Equal error rate over the unseen classes' test pictures, measured with the accuracy."""
    seconds: float = 0.0
    """Wall time of the trial."""
    directory: str
    """Absolute path of the trial's folder."""
    run_id: str | None = None
    """The MLflow run; None until the store has given it."""
    error: str | None = None
    """Why it failed, in one or a few lines."""
    findings: tuple[Finding, ...] | None = None
    """What its statistics say is wrong with it; empty if nothing is, None before it has ended."""
    out_of_memory: tuple[str, ...] = ()
    """When and where it found no memory beside others on its GPU, and began again from its last checkpoint."""

    @property
    def label(self) -> str:
        """`trial 3`; roles that exist once have no number."""
        return f"{self.role} {self.number}" if self.role in ("trial", "replicate") else self.role


class StudyResults(BaseModel):
    """What is known of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    trials_planned: int
    finished: bool = False
    started_at: float
    """Seconds since 1970."""
    seconds: float = 0.0
    """Wall time of the study so far, without the time between two drivers."""
    search_began: float | None = None
    """`seconds` when the search first began."""
    tracking_uri: str
    experiment: str
    experiment_id: str | None = None
    """MLflow's, as in the addresses of its pages."""
    parent_run_id: str
    rows: tuple[TrialRow, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What is wrong with the study as a whole."""
    outbox: Line | None = None
    """What MLflow is told of the last change. The ledger is written before the spool: a driver that dies
    between the two leaves it here for the next."""

    def of(self, role: Role) -> tuple[TrialRow, ...]:
        """The rows of one role, in their order."""
        return tuple(row for row in self.rows if row.role == role)

    @property
    def best_trials(self) -> tuple[TrialRow, ...]:
        """The complete trials, best validation accuracy first, the earlier of equals first."""
        usable = [row for row in self.of("trial") if row.state == "complete"]
        return tuple(sorted(usable, key=lambda row: (-(row.value or 0.0), row.number)))

    @property
    def winner(self) -> TrialRow | None:
        """The best trial, if any is complete."""
        return next(iter(self.best_trials), None)

    def with_row(self, row: TrialRow) -> StudyResults:
        """These results with `row` in place of the one of its role and number, or added."""
        rows = {(old.role, old.number): old for old in self.rows}
        rows[row.role, row.number] = row
        return self.model_copy(update={"rows": tuple(rows.values())})

    @property
    def run_ids(self) -> dict[str, str]:
        """MLflow's ids that are known, by the runs' labels."""
        rows = {row.label: row.run_id for row in self.rows if row.run_id is not None}
        return {STUDY_RUN: self.parent_run_id, **rows}

    def lying_in(self, folder: Path) -> StudyResults:
        """These results with their trials in the study's folder `folder`, wherever that lay before."""
        rows = [
            row.model_copy(update={"directory": str(folder / place_of(row.role, row.number))})
            for row in self.rows
        ]
        return self.model_copy(update={"rows": tuple(rows)})

    def extended_to(self, trials: int) -> StudyResults:
        """These results of a study that is to have so many trials; its time budget counts anew."""
        update = {"trials_planned": trials, "finished": False, "search_began": None, "findings": ()}
        return self.model_copy(update=update)

    def with_run_ids(self, ids: Mapping[str, str]) -> StudyResults:
        """These results with the ids of runs that had none."""
        if all(row.run_id is not None or row.label not in ids for row in self.rows):
            return self
        rows = [
            row.model_copy(update={"run_id": row.run_id or ids.get(row.label)}) for row in self.rows
        ]
        return self.model_copy(update={"rows": tuple(rows)})


LEDGER = "results.json"
"""The ledger's file in a study's folder."""


def find_results(storage: Path, name: str) -> StudyResults:
    """The ledger of the study `name` under `storage`; InputError names the studies that are there."""
    path = storage / name / LEDGER
    if path.is_file():
        return load_results(path).lying_in(path.parent)
    raise no_such_study(storage, name, beside=LEDGER)


def no_such_study(storage: Path, name: str, *, beside: str) -> InputError:
    """The error that names the studies under `storage`: the folders with this file."""
    known = sorted(found.parent.name for found in storage.glob(f"*/{beside}"))
    remedy = f"there are {', '.join(known)}" if known else "run a study, or name its --storage"
    return input_error(InputError, str(storage), "must hold the study", remedy, name)


def all_results(storage: Path) -> list[StudyResults]:
    """The ledgers of all studies under `storage` that can be read, the youngest first."""
    found: list[StudyResults] = []
    for path in storage.glob(f"*/{LEDGER}"):
        with suppress(InputError):
            found.append(load_results(path))
    return sorted(found, key=lambda results: -results.started_at)


def save_results(results: StudyResults, path: Path) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(results.model_dump_json(indent=2), encoding="utf-8")
    os.replace(temporary, path)


def load_results(path: Path) -> StudyResults:
    """Read what `save_results` wrote; InputError if it was another version, or the file is damaged."""
    try:
        return StudyResults.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        rule = "must be the ledger of a study that this version of kd-study wrote"
        remedy = "use the version that did, or restore the file"
        raise input_error(InputError, str(path), rule, remedy) from error
