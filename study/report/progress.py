"""What a running study shows: a quiet live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from study.report.text import UNKNOWN, duration, one_line, params_text, percent, short_names
from study.results import Key, TrialRow, best_first
from trainable.records import VAL_ACCURACY, EpochRecord

_QUIET_S = 10.0
_BAR_WIDTH = 16
_SHOWN_RUNNING = 20
"""To draw a hundred, four times a second, would take a seventh of a core."""
_TOLD_SHARE = 2 / 3
_FEWEST_TOLD = 6


@dataclass(frozen=True)
class RunningTrial:
    """A trial that has started: how far it is, and when that was told."""

    row: TrialRow
    """As it was when it started; it goes on after `row.epochs`."""
    started: float
    epoch: int = 0
    epochs_total: int | None = None
    told: float = 0.0
    """When its last epoch was reported."""
    accuracy: float | None = None
    """Validation accuracy of its last epoch."""

    @property
    def share(self) -> float | None:
        """Of its epochs that it has run; None before the first."""
        return self.epoch / self.epochs_total if self.epoch and self.epochs_total else None

    @property
    def seconds_in_all(self) -> float | None:
        """At the pace of its epochs since it started, if it is not stopped; None before the first."""
        new = self.epoch - self.row.epochs
        if new <= 0 or self.epochs_total is None:
            return None
        return (self.told - self.started) / new * self.epochs_total


@dataclass(frozen=True)
class EndedTrial:
    """A trial that is over, or waits: what it tells of those to come."""

    row: TrialRow
    share: float | None = None
    """Of its epochs that it ran; None where that was not told."""


def time_left(
    ended: Sequence[EndedTrial],
    running: Sequence[RunningTrial],
    planned: int,
    concurrency: int,
    now: float,
    idle: float = 0.0,
) -> float | None:
    """Seconds until the last planned trial ends; None while there is nothing to judge by.

    A trial to come takes as long as those that ended did in the mean, stopped and failed ones too,
    since more of them will; while none has, as long as the running ones seem to take. The first
    third does not count: those trials began before the pruner had others to compare them with, and
    before the sampler knew which sizes it would come back to. A
    running trial goes on at its own pace as far as those that went farther did. Trials to come then
    take the free one of `concurrency` places, one after the other, `idle` seconds after it was left.
    """
    told = ended[-max(_FEWEST_TOLD, math.ceil(_TOLD_SHARE * len(ended))) :]
    useful = any(trial.row.state != "failed" for trial in told)
    projected = [s for trial in running if (s := trial.seconds_in_all) is not None]
    known = [trial.row.seconds for trial in told] if useful else projected
    waiting = max(0, planned - len(ended) - len(running))
    if not known and (waiting or running):
        return None
    mean = fmean(known) if known else 0.0
    places = [_seconds_left(trial, told, mean, now) for trial in running]
    places += [0.0] * (concurrency - len(places))
    heapq.heapify(places)
    for _ in range(waiting):
        heapq.heapreplace(places, places[0] + idle + mean)
    return max(places)


def _seconds_left(
    trial: RunningTrial, ended: Iterable[EndedTrial], mean: float, now: float
) -> float:
    """Of a running trial."""
    share, whole = trial.share, trial.seconds_in_all
    if share is None or whole is None:
        return max(0.0, mean - (now - trial.started))
    farther = [other.share for other in ended if other.share is not None and other.share > share]
    goal = fmean(farther) if farther else 1.0
    return max(0.0, whole * (goal - share) - (now - trial.told))


class Progress:
    """Shows a study while it runs; use as a context manager.

    `planned` counts trials of the search, `concurrency` those that run at once, and `ended` are
    rows of an interrupted study that is taken up again: of what is over, or waits. `clock` counts seconds.
    """

    def __init__(
        self,
        planned: int,
        concurrency: int,
        *,
        ended: Iterable[TrialRow] = (),
        objectives: Sequence[str] = ("accuracy",),
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._planned, self._objectives = planned, objectives
        self._concurrency = max(1, concurrency)
        self._console = console or Console()
        self._clock = clock
        self._phase = ""
        # Replaced, never changed in place: the live display reads them from its own thread.
        self._running: dict[Key, RunningTrial] = {}
        self._ended = {row.key: EndedTrial(row) for row in ended}
        self._left: list[float] = []
        """When places were left that no trial has taken yet."""
        self._idle: list[float] = []
        """Seconds for which places then stood empty."""
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
        shown = [_running_table(running[:_SHOWN_RUNNING])] if running else []
        more = len(running) - _SHOWN_RUNNING
        return Group(head, *shown, *([Text(f"and {more} more", "dim")] if more > 0 else []))

    def phase(self, text: str) -> None:
        """Say what the study does now: `training the teacher`, `searching`, …"""
        self._phase = text
        if not self._console.is_interactive:
            self.message(text)

    def trial_started(self, row: TrialRow) -> None:
        """A trial begins."""
        trial = RunningTrial(row, self._clock())
        if self._left:
            left, *self._left = self._left
            self._idle = [*self._idle, trial.started - left]
        self._running = {**self._running, row.key: trial}
        self._ended = {key: other for key, other in self._ended.items() if key != row.key}

    def epoch(self, row: TrialRow, record: EpochRecord, epochs_total: int) -> None:
        """A trial has reported an epoch."""
        key, now = row.key, self._clock()
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
        """A trial is over (complete, pruned or failed), or waits: most of those that do will not go on."""
        key = row.key
        ran = self._running.get(key)
        self._running = {other: trial for other, trial in self._running.items() if other != key}
        self._ended = {**self._ended, key: EndedTrial(row, None if ran is None else ran.share)}
        if row.role == "trial":
            self._left = [*self._left, self._clock()]
        if not self._console.is_interactive or row.state == "failed":
            self.message(_ending(row))

    def message(self, text: str) -> None:
        """Print a line that stays."""
        self._last_line = self._clock()
        self._console.print(Text(text), soft_wrap=True, highlight=False)

    def status(self) -> str:
        """`4/12 trials, 1 pruned, best trial 2 91.31 %, 4 min 05 s left`; after the search what came of the rest."""
        ended = [trial.row for trial in self._searched()]
        counts = Counter(row.state for row in ended)
        others = ("pruned", "waiting", "failed")
        screened = sum(trial.row.role == "screening" for trial in self._ended.values())
        return ", ".join(
            [
                f"{sum(row.has_ended for row in ended)}/{self._planned} trials",
                *(f"{counts[state]} {state}" for state in others if counts[state]),
                *([f"{screened} screened"] if screened else []),
                f"best {_best(ended, self._objectives)}",
                self._beside() or f"{duration(self.seconds_left())} left",
            ]
        )

    def _beside(self) -> str:
        """`20 baseline trials, 3 replicates` that have ended, where no trial of the search runs."""
        if any(trial.row.role == "trial" for trial in self._running.values()):
            return ""
        counts = Counter(trial.row.role for trial in self._ended.values() if trial.row.of)
        named = (("baseline trial", counts["baseline"]), ("replicate", counts["replicate"]))
        return ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in named if count)

    def seconds_left(self) -> float | None:
        """Of the search; None while there is nothing to judge by."""
        now = self._clock()
        running = [trial for trial in self._running.values() if trial.row.role == "trial"]
        idle = fmean(self._idle) if self._idle else 0.0
        return time_left(self._searched(), running, self._planned, self._concurrency, now, idle)

    def _searched(self) -> list[EndedTrial]:
        return [trial for trial in self._ended.values() if trial.row.role == "trial"]


def _best(ended: Iterable[TrialRow], objectives: Sequence[str]) -> str:
    complete = [row for row in ended if row.is_usable and row.value is not None]
    if not complete:
        return UNKNOWN
    highest = max(row.value or 0.0 for row in complete)
    # What betters one of these is one of them: they alone tell which are on the front.
    best = best_first([row for row in complete if row.value == highest], objectives)[0]
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
    facts = [f"{row.epochs} epochs", duration(row.seconds)]
    if row.role != "replicate":  # which has no validation
        facts = [f"val {percent(row.value)} %", *facts]
    params = params_text(row.params, short_names([row]))
    return f"{row.label} {row.state}: {', '.join([*facts, params] if params else facts)}"
