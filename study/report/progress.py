"""What a running study shows: a quiet live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from study.report.text import UNKNOWN, duration, one_line, params_text, percent, short_names
from study.results import Role, TrialRow
from trainable.records import VAL_ACCURACY, EpochRecord

_QUIET_S = 10.0
_BAR_WIDTH = 16

Key = tuple[Role, int]


@dataclass(frozen=True)
class RunningTrial:
    """A trial that has started: how far it is, and when that was told."""

    row: TrialRow
    started: float
    epoch: int = 0
    epochs_total: int | None = None
    told: float = 0.0
    """When its last epoch was reported."""
    accuracy: float | None = None
    """Validation accuracy of its last epoch."""

    def seconds_left(self, now: float) -> float | None:
        """At the pace of its epochs so far; None before the first."""
        if not self.epoch or self.epochs_total is None:
            return None
        pace = (self.told - self.started) / self.epoch
        return max(0.0, pace * (self.epochs_total - self.epoch) - (now - self.told))

    def seconds_in_all(self) -> float | None:
        """At the pace of its epochs so far; None before the first."""
        if not self.epoch or self.epochs_total is None:
            return None
        return (self.told - self.started) / self.epoch * self.epochs_total


def time_left(
    ended: Iterable[TrialRow],
    running: Iterable[RunningTrial],
    planned: int,
    concurrency: int,
    now: float,
) -> float | None:
    """Seconds until the last planned trial ends; None while there is nothing to judge by.

    A trial to come takes the mean of those that ended (pruned ones too: more will be), or else of
    what the running ones seem to take; `concurrency` of them share the time.
    """
    ended, running = list(ended), list(running)
    measured = [row.seconds for row in ended if row.state in ("complete", "pruned")]
    projected = [seconds for trial in running if (seconds := trial.seconds_in_all()) is not None]
    known = measured or projected
    waiting = max(0, planned - len(ended) - len(running))
    if not known and (waiting or running):
        return None
    mean = sum(known) / len(known) if known else 0.0
    lefts = [
        max(0.0, mean - (now - trial.started))
        if (left := trial.seconds_left(now)) is None
        else left
        for trial in running
    ]
    return max([*lefts, (sum(lefts) + waiting * mean) / concurrency])


class Progress:
    """Shows a study while it runs; use as a context manager.

    `planned` counts trials of the search, `concurrency` those that run at once, and `ended` are
    rows of an interrupted study that is taken up again. `clock` counts seconds.
    """

    def __init__(
        self,
        planned: int,
        concurrency: int,
        *,
        ended: Iterable[TrialRow] = (),
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._planned = planned
        self._concurrency = max(1, concurrency)
        self._console = console or Console()
        self._clock = clock
        self._phase = ""
        # Replaced, never changed in place: the live display reads them from its own thread.
        self._running: dict[Key, RunningTrial] = {}
        self._ended: dict[Key, TrialRow] = {(row.role, row.number): row for row in ended}
        self._last_line = clock()
        self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if self._console.is_interactive:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __rich__(self) -> Group:
        """The live display; what matters most is on top, for consoles of few lines."""
        head = Text.assemble((self._phase, "bold"), "  " if self._phase else "", self.status())
        running = list(self._running.values())
        return Group(head, _running_table(running)) if running else Group(head)

    def phase(self, text: str) -> None:
        """Say what the study does now: `training the teacher`, `searching`, …"""
        self._phase = text
        if not self._console.is_interactive:
            self.message(text)

    def trial_started(self, row: TrialRow) -> None:
        """A trial begins."""
        trial = RunningTrial(row, self._clock())
        self._running = {**self._running, (row.role, row.number): trial}

    def epoch(self, row: TrialRow, record: EpochRecord, epochs_total: int) -> None:
        """A trial has reported an epoch."""
        key = (row.role, row.number)
        now = self._clock()
        trial = replace(
            self._running.get(key, RunningTrial(row, now)),
            epoch=record.epoch,
            epochs_total=epochs_total,
            told=now,
            accuracy=record.metrics.get(VAL_ACCURACY),
        )
        self._running = {**self._running, key: trial}
        if not self._console.is_interactive and now - self._last_line >= _QUIET_S:
            self.message(self.status())

    def trial_ended(self, row: TrialRow) -> None:
        """A trial is over: complete, pruned or failed."""
        key = (row.role, row.number)
        self._running = {other: trial for other, trial in self._running.items() if other != key}
        self._ended = {**self._ended, key: row}
        if not self._console.is_interactive or row.state == "failed":
            self.message(_ending(row))

    def message(self, text: str) -> None:
        """Print a line that stays."""
        self._last_line = self._clock()
        self._console.print(Text(text), soft_wrap=True, highlight=False)

    def status(self) -> str:
        """`4/12 trials, 1 pruned, best trial 2 91.31 %, 4 min 05 s left`."""
        ended = [row for row in self._ended.values() if row.role == "trial"]
        running = [trial for trial in self._running.values() if trial.row.role == "trial"]
        counts = {
            state: [row.state for row in ended].count(state) for state in ("pruned", "failed")
        }
        stopped = [f"{count} {state}" for state, count in counts.items() if count]
        left = time_left(ended, running, self._planned, self._concurrency, self._clock())
        return ", ".join(
            [
                f"{len(ended)}/{self._planned} trials",
                *stopped,
                f"best {_best(ended)}",
                f"{duration(left)} left",
            ]
        )


def _best(ended: Iterable[TrialRow]) -> str:
    complete = [row for row in ended if row.state == "complete" and row.value is not None]
    if not complete:
        return UNKNOWN
    best = max(complete, key=lambda row: (row.value or 0.0, -row.number))
    return f"{best.label} {percent(best.value)} %"


def _running_table(running: list[RunningTrial]) -> Table:
    names = short_names(trial.row for trial in running)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("running", no_wrap=True)
    table.add_column("", width=_BAR_WIDTH)
    table.add_column("epoch", justify="right", no_wrap=True)
    table.add_column("val %", justify="right", no_wrap=True)
    table.add_column("hyperparameters", style="dim")
    for trial in running:
        total = trial.epochs_total
        table.add_row(
            trial.row.label,
            ProgressBar(total=total or 1, completed=trial.epoch, width=_BAR_WIDTH),
            f"{trial.epoch}/{total or UNKNOWN}",
            percent(trial.accuracy),
            Text(params_text(trial.row.params, names), no_wrap=True, overflow="ellipsis"),
        )
    return table


def _ending(row: TrialRow) -> str:
    """`trial 3 complete: val 91.31 %, 20 epochs, 1 min 01 s, lr=0.05, k/n=5/2`."""
    if row.state == "failed":
        return f"{row.label} failed: {one_line(row.error)}"
    facts = [f"val {percent(row.value)} %", f"{row.epochs} epochs", duration(row.seconds)]
    params = params_text(row.params, short_names([row]))
    return f"{row.label} {row.state}: {', '.join([*facts, params] if params else facts)}"
