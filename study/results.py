"""What is known of a study: its figures, and every trial with its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from study.entries import STUDY_RUN, Line
from study.objectives import pareto_front
from trainable.records import Finding

Role = Literal["teacher", "baseline", "screening", "trial", "replicate"]
State = Literal["running", "waiting", "complete", "pruned", "failed"]
"""Of a trial; `waiting` is what trains in pieces, between two of them."""
Value = bool | int | float | str
Key = tuple[Role, str, int]
"""Tells a study's rows apart: role, `TrialRow.of`, number."""


_SEARCHING: tuple[Role, ...] = ("screening", "trial")
"""What a search trains."""


def place_of(role: Role, number: int, of: str = "") -> Path:
    """Where a trial's folder lies in that of its study."""
    if not of and role in ("teacher", "baseline"):
        return Path(role)
    return Path(f"{role}s", of.replace(" ", "-"), f"{number:04d}")


def label_of(role: Role, number: int, of: str = "") -> str:
    """`trial 3`, `baseline kd 3`, `trial 3 replicate 0`; roles that exist once have no number."""
    match role:
        case "trial" | "screening":
            return f"{role} {number}"
        case "replicate":
            return f"{of} replicate {number}".lstrip()
        case _:
            return f"{role} {of} {number}" if of else role


def is_searched(role: Role, of: str) -> bool:
    """Whether Optuna draws it: a trial, or one of a baseline's own search."""
    return role == "trial" or (role == "baseline" and bool(of))


class TrialRow(BaseModel):
    """One trial, as the leaderboard shows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    number: int
    """Counted from 0 within its role, and what it is `of`."""
    of: str = ""
    """Of a replicate, the label of the row whose hyperparameters it has; of a baseline that is searched, its name."""
    state: State = "running"
    params: dict[str, Value] = {}
    """The searched values by dotted path, and `distill.k`/`distill.n` beside a searched decomposition."""
    epochs: int = 0
    """Epochs that were reported."""
    until: int | None = None
    """The epoch after which it waits for its turn; None in the last piece of it, or where it has no pieces."""
    value: float | None = None
    """Best validation accuracy of an epoch, in [0, 1]."""
    best_epoch: int | None = None
    val_eer: float | None = None
    """Equal error rate over the unseen classes' training pictures at the best epoch; None without any."""
    test_accuracy: float | None = None
    """Measured once, at the end of the study; None for a trial that was not tested."""
    test_eer: float | None = None
    """Equal error rate over the unseen classes' test pictures, measured with the accuracy."""
    costs: dict[str, float] = {}
    """Values of objectives besides accuracy (`study.objectives`), as far as they are known."""
    violates: tuple[str, ...] = ()
    """The constraints of the study that it breaks: such a trial never wins."""
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
        """`trial 3`, `baseline kd 3`, `trial 3 replicate 0`; roles that exist once have no number."""
        return label_of(self.role, self.number, self.of)

    @property
    def key(self) -> Key:
        """Which of the study's rows it is."""
        return self.role, self.of, self.number

    @property
    def is_searched(self) -> bool:
        """Whether Optuna drew it: a trial, or one of a baseline's own search."""
        return is_searched(self.role, self.of)

    @property
    def has_ended(self) -> bool:
        """Whether no more is to come of it."""
        return self.state not in ("running", "waiting")

    @property
    def is_usable(self) -> bool:
        """Whether it ran to its end and keeps to the study's constraints."""
        return self.state == "complete" and not self.violates

    @property
    def values(self) -> dict[str, float]:
        """Objective → value, as far as they are known."""
        return {**({} if self.value is None else {"accuracy": self.value}), **self.costs}


class StudyResults(BaseModel):
    """What is known of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    trials_planned: int
    objectives: tuple[str, ...] = ("accuracy",)
    """What is sought, as `study.objectives` has it."""
    constraints: dict[str, float] = {}
    """The bound of each objective that has one, as `study.constraints` has them."""
    finished: bool = False
    started_at: float
    """Seconds since 1970."""
    seconds: float = 0.0
    """Wall time of the study so far, without the time between two drivers."""
    search_began: float | None = None
    """`seconds` when the search first began."""
    epochs_before: int = 0
    """Epochs of the search before it was extended."""
    val_pictures: int | None = None
    """On how many pictures trials are validated."""
    test_pictures: int | None = None
    """On how many the networks are tested."""
    tracking_uri: str
    experiment: str
    experiment_id: str | None = None
    """MLflow's, as in the addresses of its pages."""
    parent_run_id: str
    changes: int = 0
    """How many there were so far: tells which lines of changes are not in the whole yet."""
    rows: tuple[TrialRow, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What is wrong with the study as a whole."""
    outbox: Line | None = None
    """What MLflow is told of the last change. The ledger is written before the spool: a driver that dies
    between the two leaves it here for the next."""

    def of(self, role: Role, of: str = "") -> tuple[TrialRow, ...]:
        """The rows of one role, in their order; of replicates and searched baselines, those of one label or name."""
        return tuple(row for row in self.rows if (row.role, row.of) == (role, of))

    @property
    def best_trials(self) -> tuple[TrialRow, ...]:
        """The usable trials, best validation accuracy first; of equals those on the front, then the earlier, first."""
        return best_first(self.of("trial"), self.objectives)

    def best_of_baseline(self, name: str) -> TrialRow | None:
        """The best trial of a baseline's own search, if any is usable."""
        return next(iter(best_first(self.of("baseline", name))), None)

    @property
    def winner(self) -> TrialRow | None:
        """The best trial, if any is usable."""
        return next(iter(self.best_trials), None)

    @property
    def front(self) -> tuple[TrialRow, ...]:
        """The usable trials that no other betters in all objectives together; none where there is one objective."""
        return _front(self.of("trial"), self.objectives)

    @property
    def replicates_of_winner(self) -> tuple[TrialRow, ...]:
        """The complete ones, in their order."""
        rows = () if self.winner is None else self.of("replicate", self.winner.label)
        complete = [row for row in rows if row.state == "complete"]
        return tuple(sorted(complete, key=lambda row: row.number))

    def row(self, role: Role, number: int, of: str = "") -> TrialRow | None:
        """The row of a role and number, if there is one."""
        at = self._place((role, of, number))
        return None if at is None else self.rows[at]

    def with_row(self, row: TrialRow) -> StudyResults:
        """These results with `row` in place of the one of its key, or added."""
        at = self._place(row.key)
        rows = (*self.rows, row) if at is None else (*self.rows[:at], row, *self.rows[at + 1 :])
        return self.model_copy(update={"rows": rows})

    @property
    def run_ids(self) -> dict[str, str]:
        """MLflow's ids that are known, by the runs' labels."""
        rows = {row.label: row.run_id for row in self.rows if row.run_id is not None}
        return {STUDY_RUN: self.parent_run_id, **rows}

    def lying_in(self, folder: Path) -> StudyResults:
        """These results with their trials in the study's folder `folder`, wherever that lay before."""
        rows = [
            row.model_copy(
                update={"directory": str(folder / place_of(row.role, row.number, row.of))}
            )
            for row in self.rows
        ]
        return self.model_copy(update={"rows": tuple(rows)})

    def extended_to(self, trials: int) -> StudyResults:
        """These results of a study that is to have so many trials; its budgets count anew."""
        update = {
            "trials_planned": trials,
            "finished": False,
            "search_began": None,
            "epochs_before": sum(row.epochs for row in self.rows if row.role in _SEARCHING),
            "findings": (),
        }
        return self.model_copy(update=update)

    def with_run_ids(self, ids: Mapping[str, str]) -> StudyResults:
        """These results with the ids of runs that had none."""
        named = {
            at: row.model_copy(update={"run_id": ids[row.label]})
            for at, row in enumerate(self.rows)
            if row.run_id is None and row.label in ids
        }
        if not named:
            return self
        rows = tuple(named.get(at, row) for at, row in enumerate(self.rows))
        return self.model_copy(update={"rows": rows})

    def _place(self, key: Key) -> int | None:
        """Where a row is; the last ones are asked for most."""
        for at in range(len(self.rows) - 1, -1, -1):
            if self.rows[at].number == key[2] and self.rows[at].key == key:
                return at
        return None


def best_first(
    rows: Iterable[TrialRow], objectives: Sequence[str] = ("accuracy",)
) -> tuple[TrialRow, ...]:
    """The usable ones, best validation accuracy first; of equals those on the front, then the earlier, first."""
    usable = [row for row in rows if row.is_usable]
    front = {row.number for row in _front(usable, objectives)}

    def key(row: TrialRow) -> tuple[float, bool, int]:
        return -(row.value or 0.0), row.number not in front, row.number

    return tuple(sorted(usable, key=key))


def _front(rows: Iterable[TrialRow], objectives: Sequence[str]) -> tuple[TrialRow, ...]:
    if len(objectives) == 1:
        return ()
    told = {row.number: row for row in rows if row.is_usable}
    points = {n: row.values for n, row in told.items() if set(objectives) <= set(row.values)}
    return tuple(told[number] for number in pareto_front(points, objectives))
