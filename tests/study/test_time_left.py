"""The estimate of the time left: its rules, a real study's timings played again, and many made-up studies."""

from __future__ import annotations

import heapq
import io
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest
from rich.console import Console

from study.halving import Course, Halving
from study.report.progress import EndedTrial, Progress, RunningTrial, time_left
from study.results import State, TrialRow
from trainable.records import VAL_ACCURACY, EpochRecord

RECORDED = sorted(Path(__file__).parent.glob("timings_*.json"))


def trial(number: int, state: State = "running", seconds: float = 0.0, epochs: int = 0) -> TrialRow:
    known = {"role": "trial", "number": number, "state": state, "seconds": seconds}
    return TrialRow.model_validate(known | {"epochs": epochs, "directory": "/d", "value": 0.5})


def over(state: State, seconds: float, share: float | None = None) -> EndedTrial:
    return EndedTrial(trial(0, state, seconds), share)


def running(*, epoch: int, told: float, total: int, before: int = 0) -> RunningTrial:
    return RunningTrial(trial(0, epochs=before), 0.0, epoch, total, told)


def test_time_left_is_unknown_at_first() -> None:
    assert time_left([], [], 4, 2, 0.0) is None
    assert time_left([], [RunningTrial(trial(0), 0.0)], 1, 1, 5.0) is None
    assert time_left([over("failed", 1.0)], [], 4, 2, 0.0) is None


def test_trials_to_come_take_the_places_one_after_the_other() -> None:
    ended = [over("complete", 10.0), over("pruned", 4.0)]
    assert time_left(ended, [], 6, 2, 0.0) == pytest.approx(2 * 7)
    assert time_left(ended, [], 7, 2, 0.0) == pytest.approx(3 * 7)  # the fifth runs alone
    assert time_left(ended, [], 7, 2, 0.0, idle=1.0) == pytest.approx(3 * 8)
    assert time_left([*ended, over("failed", 1.0)], [], 4, 1, 0.0) == pytest.approx(5)


def test_the_first_third_tells_nothing_of_the_trials_to_come() -> None:
    early, later = [over("complete", 100.0)] * 3, [over("pruned", 10.0)] * 6
    assert time_left([*early, *later], [], 10, 1, 0.0) == pytest.approx(10)
    few = [*early, *later[:3]]  # too few to leave any out
    assert time_left(few, [], 7, 1, 0.0) == pytest.approx(55)


def test_a_running_trial_goes_on_at_its_own_pace() -> None:
    # 2 s an epoch, 3 of 5 done, told 1 s ago: 3 s to go, and two more trials of 10 s
    one = running(epoch=3, told=6.0, total=5)
    assert time_left([], [one], 3, 1, 7.0) == pytest.approx(3 + 20)
    assert time_left([], [one], 1, 1, 7.0) == pytest.approx(3)


def test_a_running_trial_may_be_stopped_where_others_were() -> None:
    one = running(epoch=2, told=20.0, total=10)
    shares = (0.1, 0.5, 1.0)  # of the two that went farther than 0.2, the mean is 0.75
    ended = [over("pruned", 5.0, share) for share in shares] + [over("failed", 5.0, None)]
    assert time_left(ended, [one], 5, 1, 20.0) == pytest.approx(55)


def test_a_resumed_trial_is_timed_by_its_new_epochs() -> None:
    one = running(epoch=6, told=10.0, total=10, before=5)
    assert time_left([], [one], 1, 1, 10.0) == pytest.approx(40)
    again = running(epoch=5, told=10.0, total=10, before=5)
    assert time_left([], [again], 1, 1, 10.0) is None


def test_time_left_is_at_least_that_of_the_slowest_running_trial() -> None:
    slow, quick = running(epoch=1, told=10.0, total=10), running(epoch=9, told=9.0, total=10)
    assert time_left([over("complete", 5.0)], [slow, quick], 3, 2, 10.0) == pytest.approx(90)


def test_time_left_never_falls_below_zero() -> None:
    late = running(epoch=4, told=4.0, total=5)
    assert time_left([], [late], 1, 1, 60.0) == 0
    assert time_left([over("complete", 5.0)], [], 1, 1, 0.0) == 0
    assert time_left([over("complete", 5.0)], [RunningTrial(trial(1), 0.0)], 2, 1, 60.0) == 0


def test_places_that_stood_empty_will_again() -> None:
    now = 0.0
    progress = Progress(3, 1, console=Console(file=io.StringIO()), clock=lambda: now)
    progress.trial_started(trial(0))
    now = 10.0
    progress.trial_ended(trial(0, "complete", 10.0))
    now = 13.0
    progress.trial_started(trial(1))
    assert progress.seconds_left() == pytest.approx(10 + 3 + 10)


@dataclass(frozen=True)
class Event:
    """Something that a display is told: `started`, `epoch`, or the state in which a trial ended."""

    at: float
    kind: str
    number: int
    epoch: int = 0
    total: int = 0
    seconds: float = 0.0


def estimates(
    events: list[Event], planned: int, places: int, after: float = 1 / 3
) -> Iterator[tuple[float, float]]:
    """(estimated, true) time left whenever a trial ends after a share of them has, but for the last ones."""
    now = 0.0
    console = Console(file=io.StringIO())
    progress = Progress(planned, places, console=console, clock=lambda: now)
    rested: dict[int, int] = {}
    """Epochs by number, of trials that ended or wait."""
    for event in events:
        now = event.at
        if event.kind == "started":
            progress.trial_started(trial(event.number, epochs=rested.get(event.number, 0)))
        elif event.kind == "epoch":
            record = EpochRecord(event.epoch, {VAL_ACCURACY: 0.5}, 0)
            progress.epoch(trial(event.number), record, event.total)
        else:
            state: Any = event.kind
            progress.trial_ended(trial(event.number, state, event.seconds))
            rested[event.number] = event.epoch
            ended = len(rested)
            if ended >= after * planned and planned - ended > 2 * places:
                left = progress.seconds_left()
                assert left is not None
                yield left, events[-1].at - now


def read_timings(path: Path) -> tuple[list[Event], int, int]:
    told = json.loads(path.read_text())
    events = [
        Event(at, kind, number, *more) if kind in ("started", "epoch") else
        Event(at, kind, number, seconds=more[0])
        for at, kind, number, *more in told["events"]
    ]  # fmt: skip
    return events, told["planned"], told["slots"]


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_a_real_study_is_estimated_within_a_quarter(path: Path) -> None:
    """The quickstart study of 30 trials on two CPU cores, with pruning; after a third of the trials."""
    events, planned, places = read_timings(path)
    found = list(estimates(events, planned, places))
    assert len(found) >= 8
    assert all(abs(left - true) <= 0.25 * true for left, true in found), found


def test_there_are_recordings() -> None:
    kinds = {event.kind for path in RECORDED for event in read_timings(path)[0]}
    assert kinds >= {"started", "epoch", "complete", "pruned"}


class MadeUp:
    """A study of trials of varying length and pace, some of which fail or are pruned at the rungs 3 and 9."""

    def __init__(self, seed: int, planned: int, places: int, *, prune: bool, vary: bool) -> None:
        self._draw = random.Random(seed)
        self._planned, self._prune, self._vary = planned, prune, vary
        self._rungs: dict[int, list[float]] = {3: [], 9: []}
        self._queue: list[tuple[float, int, int]] = []
        self._trials: list[dict[str, float]] = []
        self.events: list[Event] = []
        for _ in range(places):
            self._start(0.0)
        while self._queue:
            self._epoch(*heapq.heappop(self._queue))
        self.events.sort(key=lambda event: event.at)

    def _start(self, at: float) -> None:
        if len(self._trials) == self._planned:
            return
        began, draw = at + self._draw.uniform(0.2, 1.0), self._draw
        total = draw.choice((8, 12, 16)) if self._vary else 12
        pace = draw.choice((0.7, 1.0, 1.5)) if self._vary else 1.0
        fails = draw.randrange(1, total + 1) if draw.random() < 0.08 else 0
        known = {"began": began, "total": total, "pace": pace, "fails": fails}
        self.events.append(Event(began, "started", len(self._trials)))
        heapq.heappush(self._queue, (began + 0.5 + pace, len(self._trials), 1))
        self._trials.append(known | {"quality": draw.random()})

    def _epoch(self, at: float, number: int, epoch: int) -> None:
        known = self._trials[number]
        self.events.append(Event(at, "epoch", number, epoch, int(known["total"])))
        state = self._state(known, epoch)
        if state is None:
            pace = known["pace"] * self._draw.uniform(0.9, 1.1)
            heapq.heappush(self._queue, (at + pace, number, epoch + 1))
            return
        ended = at + 0.05
        self.events.append(Event(ended, state, number, seconds=ended - known["began"]))
        self._start(ended)

    def _state(self, known: dict[str, float], epoch: int) -> str | None:
        if epoch == known["fails"]:
            return "failed"
        if epoch == known["total"]:
            return "complete"
        if not self._prune or epoch not in self._rungs:
            return None
        rung = self._rungs[epoch]
        rung.append(known["quality"])
        best = sorted(rung, reverse=True)[: len(rung) // 3]
        return "pruned" if best and known["quality"] < best[-1] else None


@pytest.mark.parametrize(("planned", "places"), [(24, 1), (24, 2), (40, 4), (60, 8)])
@pytest.mark.parametrize("prune", [True, False], ids=["pruned", "whole"])
@pytest.mark.parametrize("vary", [True, False], ids=["varied", "alike"])
def test_made_up_studies_are_estimated_without_bias(
    planned: int, places: int, prune: bool, vary: bool
) -> None:
    """One study's luck is its own; over many, the estimate leans to neither side."""
    errors: list[float] = []
    for seed in range(30):
        events = MadeUp(seed, planned, places, prune=prune, vary=vary).events
        errors += [(left - true) / true for left, true in estimates(events, planned, places)]
    assert abs(fmean(errors)) < 0.12
    assert median(map(abs, errors)) < 0.3
    if not prune and not vary:
        assert fmean(abs(error) < 0.25 for error in errors) > 0.9
    assert all(math.isfinite(error) for error in errors)


def in_pieces(seed: int, planned: int, places: int) -> list[Event]:
    """A study of trials of 20 epochs of a second each, which wait for each other."""
    draw, at = random.Random(seed), 0.0
    course = Course("alike", (3, 5, 10), 20)
    halving, drawn = Halving(planned), 0
    quality = [draw.random() for _ in range(planned)]
    epochs = [0] * planned
    running: list[tuple[float, int, int]] = []
    events: list[Event] = []
    while True:
        while len(running) < places:
            number = halving.next_up(are_more=drawn < planned)
            if number is None and drawn < planned:
                number, drawn = drawn, drawn + 1
                halving.follow(number, course, {})
            if number is None:
                break
            until = halving.begins(number) or course.epochs
            events.append(Event(at, "started", number))
            for epoch in range(epochs[number] + 1, until + 1):
                done = at + 0.5 + epoch - epochs[number]
                events.append(Event(done, "epoch", number, epoch, course.epochs))
            heapq.heappush(running, (done + 0.05, number, until))
        if not running:
            return sorted(events, key=lambda event: event.at)
        at, number, until = heapq.heappop(running)
        for epoch in range(epochs[number] + 1, until + 1):
            halving.reported(number, epoch, quality[number])
        epochs[number], is_over = until, until == course.epochs
        (halving.ends if is_over else halving.rests)(number)
        state = "complete" if is_over else "waiting"
        events.append(Event(at, state, number, until, seconds=float(until)))


@pytest.mark.parametrize(("planned", "places"), [(40, 1), (60, 5)])
def test_studies_whose_trials_wait_are_estimated_without_much_bias(
    planned: int, places: int
) -> None:
    """A little too short: of the trials that wait some will go on."""
    errors: list[float] = []
    for seed in range(30):
        events = in_pieces(seed, planned, places)
        errors += [(left - true) / true for left, true in estimates(events, planned, places)]
    assert -0.2 < fmean(errors) < 0.12
    assert median(map(abs, errors)) < 0.3
