"""Which trials of a search go on: successive halving that knows a trial's stages and waits to judge it.

A trial trains in pieces. At three points of its epochs it ends its piece and waits, its checkpoint kept, and
goes on from there once it is among the best half of those that have come as far: promotions as in asynchronous
successive halving (Li et al. 2020, algorithm 2), where no trial is judged by the few that came first. Half of an odd
number is rounded down as long as others are on their way or may be drawn, and up when none is: of the last three of a
kind two go on.

What differs is where trials wait, and by what and with whom they are compared. A point is moved away from the peak of
the learning rate of the stage that it lies in, where accuracy tells least of what a trial will come to. Trials are
compared by their best accuracy until then: a new stage throws that of the last epoch back for a while, whatever
was learned. And only with trials of their kind, which have as many stages and begin alike, as one network or in groups:
of others the accuracy says nothing until their last stage. docs/search.md compares this with stock ASHA on recorded
trials, and says what else was tried.

Where trials are screened, that is the point before all others (`study.screening`).

A state that can be rebuilt from what the trials reported: nothing of it is kept anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from trainable.config import TrialConfig
from trainable.plan import Decomposition, cycles, decomposition_of, warmup_share

SHARES = (0.1, 0.25, 0.4)
"""Of a trial's epochs, after which it waits."""
AROUND_PEAK = 0.1
"""Share of a stage's epochs before and after the peak of its learning rate, in which no trial is judged."""
WHOLE = Decomposition(1, 0)
"""What a trial without groups is like."""


@dataclass(frozen=True)
class Course:
    """What halving has to know of a trial beforehand."""

    kind: str
    """Trials of one kind are comparable."""
    points: tuple[int, ...]
    """Epochs after which it waits, one for each of `SHARES`, ascending and before its last one: in short trials some
    are one, or too late. Trials are compared at points of one place here."""
    epochs: int


def course_of(config: TrialConfig, *, waits: bool = True) -> Course:
    """Where a trial waits, if it does between its screening and its end, and with whom it is compared."""
    total, decomposition = config.train.epochs, decomposition_of(config) or WHOLE
    wanted = (math.ceil(share * total - 1e-9) for share in SHARES)
    points = sorted(_off_peak(epoch, config) for epoch in wanted)
    beginning = "whole" if decomposition.k == 1 else "in groups"
    return Course(
        kind=f"{decomposition.n + 1} stages, {beginning}",
        points=tuple(point for point in points if waits and point < total),
        epochs=total,
    )


def _off_peak(epoch: int, config: TrialConfig) -> int:
    """The epoch itself, or the nearest that is not around a peak; of two the later."""
    peak, start = warmup_share(config), 0
    for span in cycles(config):
        if epoch <= start + span:
            first = math.floor(start + (peak - AROUND_PEAK) * span + 1e-9)
            last = math.ceil(start + (peak + AROUND_PEAK) * span - 1e-9)
            if not first < epoch < last:
                return epoch
            is_before_nearer = first > start and epoch - first < last - epoch
            return first if is_before_nearer else last
        start += span
    return epoch


@dataclass
class _Trial:
    course: Course
    screened: float | None = None
    """What its screening came to."""
    epoch: int = 0
    best: float = -math.inf
    bests: list[float] = field(default_factory=list[float])
    """At each of the points that it has come to; a screening is one."""
    runs: bool = False
    is_over: bool = False
    is_usable: bool = True

    @property
    def is_whole(self) -> bool:
        return self.epoch >= self.course.epochs

    @property
    def is_finalist(self) -> bool:
        return self.is_whole and self.is_over and self.is_usable

    @property
    def waits(self) -> bool:
        """At a point, or after its screening."""
        at_point = self.epoch in self.course.points if self.epoch else self.screened is not None
        return at_point and not self.runs and not self.is_over


class Halving:
    """The trials of a search as they come to their points, by number."""

    def __init__(self, planned: int, finalists: int = 1, screened: float | None = None) -> None:
        """Of `planned` trials at least `finalists` are to run to their end and be usable, if so many can.

        Of those that are screened the share `screened` goes on; None screens no trial.
        """
        self._planned, self._finalists = planned, finalists
        halves = (0.5,) * len(SHARES)
        self._kept = halves if screened is None else (screened, *halves)
        self._screens = screened is not None
        self._trials: dict[int, _Trial] = {}

    def follow(self, number: int, course: Course, curve: Mapping[int, float]) -> None:
        """A trial that was drawn; `curve` (epoch → validation accuracy) is what it has reported.

        Of one whose driver died while it was drawn the course is not known before it is drawn to its end.
        """
        self._trials.setdefault(number, _Trial(course)).course = course
        for epoch, value in sorted(curve.items()):
            self.reported(number, epoch, value)

    def is_to_be_screened(self, number: int) -> bool:
        """Whether a trial is, before it begins."""
        return self._screens and self._trials[number].screened is None

    def screened(self, number: int, value: float) -> None:
        """The best validation accuracy of a trial's screening."""
        trial = self._trials[number]
        if trial.screened is None:
            trial.screened = value
            trial.bests.insert(0, value)

    def begins(self, number: int) -> int | None:
        """A piece of a trial begins: the epoch after which it ends, None with the trial."""
        trial = self._trials[number]
        trial.runs = True
        return next((point for point in trial.course.points if point > trial.epoch), None)

    def reported(self, number: int, epoch: int, value: float) -> None:
        """An epoch of a trial; one that is told again changes nothing."""
        trial = self._trials[number]
        if epoch <= trial.epoch:
            return
        trial.epoch, trial.best = epoch, max(trial.best, value)
        passed = len(trial.bests) - self._screens
        trial.bests += [trial.best for point in trial.course.points[passed:] if point <= epoch]

    def rests(self, number: int) -> None:
        """A piece of a trial has ended."""
        self._trials[number].runs = False

    def ends(self, number: int, *, is_usable: bool = True) -> None:
        """A trial has ended for good; one that failed, or breaks a constraint, is not usable."""
        trial = self._trials[number]
        trial.runs, trial.is_over, trial.is_usable = False, True, is_usable

    def epoch(self, number: int) -> int:
        """How many epochs a trial has reported."""
        return self._trials[number].epoch

    def best(self, number: int) -> float:
        """A trial's best accuracy until now."""
        return self._trials[number].best

    def waiting(self) -> tuple[int, ...]:
        """The trials that wait at one of their points."""
        return tuple(number for number, trial in self._trials.items() if trial.waits)

    def next_up(
        self, *, are_more: bool, fits: Callable[[int], bool] = lambda _: True
    ) -> int | None:
        """The trial that is to go on now, of those that are farthest and one that `fits`; None if none is.

        Where no trial runs and there are no more to draw, the best that still wait go on, until a trial of
        every kind has run to its end, and enough of them are usable.
        """
        for point, ranked in self._all_ranked():
            is_open = are_more or self._some_are_on_their_way(ranked, point)
            share = self._share_of(len(ranked), point, math.floor if is_open else math.ceil)
            for number in ranked[:share]:
                if self._waits_at(number, point) and fits(number):
                    return number
        if are_more or any(trial.runs for trial in self._trials.values()):
            return None
        waiting, kinds = self.waiting(), self._kinds_with_a_whole_trial()
        of_other_kinds = [n for n in waiting if self._trials[n].course.kind not in kinds]
        waiting = () if self._has_finalists() else waiting
        candidates = [n for n in of_other_kinds if fits(n)] or [n for n in waiting if fits(n)]
        return min(candidates, key=self._rank, default=None)

    def hopeless(self) -> tuple[int, ...]:
        """The waiting trials that will not go on, whatever becomes of the others."""
        if not self._has_finalists():
            return ()
        undrawn = max(0, self._planned - len(self._trials))
        kinds, found = self._kinds_with_a_whole_trial(), list[int]()
        for point, ranked in self._all_ranked():
            kind = self._trials[ranked[0]].course.kind
            if kind not in kinds:
                continue
            may_come = undrawn + sum(
                trial.course.kind == kind and len(trial.bests) <= point and not trial.is_over
                for trial in self._trials.values()
            )
            most = self._share_of(len(ranked) + may_come, point, math.ceil)
            found += [number for number in ranked[most:] if self._waits_at(number, point)]
        return tuple(found)

    def _kinds_with_a_whole_trial(self) -> set[str]:
        return {trial.course.kind for trial in self._trials.values() if trial.is_whole}

    def _has_finalists(self) -> bool:
        return sum(trial.is_finalist for trial in self._trials.values()) >= self._finalists

    def _all_ranked(self) -> Iterator[tuple[int, list[int]]]:
        """The last point first, those of each kind that have come to it, best first."""
        for point in range(len(self._kept) - 1, -1, -1):
            kinds: dict[str, list[int]] = {}
            for number, trial in self._trials.items():
                if len(trial.bests) > point:
                    kinds.setdefault(trial.course.kind, []).append(number)
            for numbers in kinds.values():
                yield point, sorted(numbers, key=lambda number: self._place(number, point))

    def _rank(self, number: int) -> tuple[int, float, int]:
        """Of waiting trials the farthest first, and the best of them."""
        point = len(self._trials[number].bests) - 1
        return -point, *self._place(number, point)

    def _some_are_on_their_way(self, ranked: list[int], point: int) -> bool:
        """Whether another trial of their kind runs, or is to begin, that has yet to come to the point."""
        kind = self._trials[ranked[0]].course.kind
        return any(
            trial.course.kind == kind
            and len(trial.bests) <= point
            and not trial.is_over
            and (trial.runs or not trial.bests)
            for trial in self._trials.values()
        )

    def _share_of(self, count: int, point: int, rounded: Callable[[float], int]) -> int:
        """How many of so many go on from a point; to nine digits, since 0.3 of ten is 3."""
        return rounded(round(count * self._kept[point], 9))

    def _place(self, number: int, point: int) -> tuple[float, int]:
        return -self._trials[number].bests[point], number

    def _waits_at(self, number: int, point: int) -> bool:
        trial = self._trials[number]
        return trial.waits and len(trial.bests) == point + 1
