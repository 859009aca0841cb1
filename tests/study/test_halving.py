"""Where trials wait, and which of them go on."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

import pytest

from study.halving import Course, Halving, course_of
from trainable.config import TrialConfig

EPOCHS = 20
POINTS = (3, 5, 10)
ALIKE = Course("alike", POINTS, EPOCHS)


def config(epochs: int = EPOCHS, decomposition: str | None = None, **changes: Any) -> TrialConfig:
    stablekd = {"method": "stablekd", "decomposition": decomposition, "alpha": 0.5}
    values: dict[str, Any] = {
        "data": {"source": "digits"},
        "student": {"model": "mini_resnet_10_4"},
        "teacher": {"model": "mini_resnet_18_4", "checkpoint": "/t"},
        "distill": {"method": "kd", "alpha": 0.5} if decomposition is None else stablekd,
        "train": {"epochs": epochs},
    }
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys}
    return TrialConfig.model_validate(values)


@pytest.mark.parametrize(
    ("trial", "points"),
    [
        (config(decomposition="5/3"), (2, 5, 8)),  # stages of 5 epochs: peaks at 1.5, 6.5, 11.5
        (
            config(decomposition="5/2"),
            (3, 5, 9),
        ),  # of 6: 1.8 and 7.8, and from 1 to 3 and from 7 to 9 is around them
        (config(decomposition="5/1"), (2, 5, 8)),  # of 10: 3, and ± 1
        (config(decomposition="1/0"), (2, 4, 8)),  # of 20: 6, and from 4 to 8 is around it
        (config(), (2, 4, 8)),  # OneCycle over all epochs
        (config(optim={"schedule": "cosine"}), (3, 5, 8)),  # 1, and ± 2
        (config(optim={"schedule": "multistep", "milestones": [10]}), (2, 5, 8)),  # 0
        (config(optim={"warmup_fraction": 0.5}), (2, 5, 8)),  # 10, and ± 2
        (config(60, "5/2"), (8, 15, 24)),  # of 20: 6, 26, 46, and ± 2
        (config(7), (1, 3, 3)),  # 2.1: 2 is around it, and 3 is as near as 1
        (config(2), (1, 1, 1)),
        (config(1), ()),
    ],
)
def test_points_are_off_the_peaks_of_the_learning_rate(
    trial: TrialConfig, points: tuple[int, ...]
) -> None:
    assert course_of(trial).points == points


def test_kinds_are_by_stages_and_by_how_a_trial_begins() -> None:
    kinds = {
        written: course_of(config(decomposition=written)).kind
        for written in ("1/0", "2/0", "5/0", "3/1", "5/1", "5/2", "5/3")
    }
    assert course_of(config()).kind == kinds["1/0"]
    assert kinds["2/0"] == kinds["5/0"] != kinds["1/0"]
    assert kinds["3/1"] == kinds["5/1"]
    assert len(set(kinds.values())) == 5


class Race:
    """Trials with a constant accuracy, one piece at a time."""

    def __init__(self, values: list[float], planned: int | None = None, finalists: int = 1) -> None:
        self.values = values
        self.halving = Halving(len(values) if planned is None else planned, finalists)
        self.drawn = 0

    def draw(self, course: Course = ALIKE) -> int:
        number, self.drawn = self.drawn, self.drawn + 1
        self.halving.follow(number, course, {})
        return number

    def run(self, number: int, course: Course = ALIKE) -> int:
        """Train its next piece; how far it came."""
        before = self.halving._trials[number].epoch
        until = self.halving.begins(number) or course.epochs
        for epoch in range(before + 1, until + 1):
            self.halving.reported(number, epoch, self.values[number])
        (self.halving.ends if until == course.epochs else self.halving.rests)(number)
        return until

    def begin(self, course: Course = ALIKE) -> None:
        self.run(self.draw(course), course)


def test_the_best_half_of_those_that_came_as_far_goes_on() -> None:
    race = Race([0.1, 0.4, 0.3, 0.2], planned=9)
    race.begin()
    assert race.halving.next_up(are_more=True) is None  # half of one is none
    race.begin()
    assert race.halving.next_up(are_more=True) == 1
    assert race.run(1) == 5
    for _ in range(2):
        assert race.halving.next_up(are_more=True) is None
        race.begin()
    assert race.halving.next_up(are_more=True) == 2
    assert race.run(2) == 5
    assert race.halving.next_up(are_more=True) == 1  # the farthest first
    assert race.run(1) == 10
    assert set(race.halving.waiting()) == {0, 1, 2, 3}


def test_half_of_three_is_two_when_all_have_come() -> None:
    race = Race([0.1, 0.5, 0.4], planned=3)
    for _ in range(2):
        race.begin()
    last = race.draw()
    race.halving.begins(last)
    assert race.halving.next_up(are_more=False) == 1  # half of the two that have come
    assert race.run(1) == 5
    assert race.halving.next_up(are_more=False) is None
    race.run(last)
    order = []
    while (number := race.halving.next_up(are_more=False)) is not None:
        order.append((number, race.run(number)))
    assert order == [(1, 10), (1, 20), (2, 5)]


def test_who_is_on_the_way_to_a_point_is_waited_for_there() -> None:
    race = Race([0.5, 0.6, 0.1, 0.2])
    for _ in race.values:
        race.begin()
    for number in (1, 0):
        assert race.halving.next_up(are_more=False) == number
        race.halving.begins(number)
    assert race.run(0) == 5
    assert race.halving.next_up(are_more=False) is None
    assert race.run(1) == 5
    assert race.halving.next_up(are_more=False) == 1


def test_trials_are_compared_with_their_kind_only() -> None:
    other = Course("other", POINTS, EPOCHS)
    race = Race([0.1, 0.2, 0.8, 0.9], planned=4)
    for course in (ALIKE, ALIKE, other, other):
        race.begin(course)
    went_on = []
    while (number := race.halving.next_up(are_more=True)) is not None:
        went_on.append(number)
        race.run(number)
    assert went_on == [1, 3]


def test_where_points_are_one_trials_are_still_compared_at_points_of_one_place() -> None:
    """A trial that waits after 2, 2 and 6 epochs has nothing to be compared with after 3."""
    early, usual = (Course("alike", points, 12) for points in ((2, 2, 6), (2, 3, 6)))
    race = Race([0.3, 0.4, 0.1, 0.2], planned=9)
    race.begin(early)
    race.begin(usual)
    assert race.halving.next_up(are_more=True) == 1
    assert race.run(1, usual) == 3
    # The first is at its second point, too, and 1 is the better half.
    assert race.halving.next_up(are_more=True) == 1
    assert race.run(1, usual) == 6
    for course in (early, usual):
        race.begin(course)
    assert race.halving.next_up(are_more=True) is None  # at the second point 1 is of 0, 1, 2
    assert set(race.halving.waiting()) == {0, 1, 2, 3}


def test_a_trial_that_was_half_drawn_is_judged_by_what_it_became() -> None:
    other = Course("other", POINTS, EPOCHS)
    race = Race([0.1, 0.2, 0.3], planned=9)
    race.begin(other)
    race.draw(ALIKE)  # as far as the driver came that died
    race.halving.follow(1, other, {})
    race.run(1, other)
    race.begin(ALIKE)
    assert race.halving.next_up(are_more=True) == 1


def test_where_nothing_is_left_to_draw_the_best_of_each_kind_runs_to_its_end() -> None:
    other = Course("other", POINTS, EPOCHS)
    race = Race([0.5, 0.6, 0.1], finalists=2)
    for course in (ALIKE, ALIKE, other):
        race.begin(course)
    order = []
    while (number := race.halving.next_up(are_more=False)) is not None:
        order.append((number, race.run(number)))
    assert order == [(1, 5), (1, 10), (1, 20), (2, 5), (2, 10), (2, 20)]


def test_there_are_as_many_finalists_as_are_wanted_and_no_more() -> None:
    for finalists in (1, 2, 4, 9):
        race = Race([0.5, 0.6, 0.1, 0.4], finalists=finalists)
        for _ in race.values:
            race.begin()
        while (number := race.halving.next_up(are_more=False)) is not None:
            race.run(number)
        whole = [number for number in range(4) if number not in race.halving.waiting()]
        assert len(whole) == min(finalists, 4), finalists
        assert set(whole) == set(sorted(range(4), key=lambda n: -race.values[n])[: len(whole)])


def test_another_goes_on_where_the_first_does_not_fit() -> None:
    """Into what is left of a budget of epochs, which those that have come far need less of."""
    other = Course("other", POINTS, EPOCHS)
    race = Race([0.5, 0.6, 0.7, 0.8, 0.1], planned=9, finalists=2)
    for course in (ALIKE, ALIKE, ALIKE, ALIKE, other):
        race.begin(course)
    assert race.halving.next_up(are_more=True) == 3
    assert race.halving.next_up(are_more=True, fits=lambda number: number != 3) == 2
    assert race.halving.next_up(are_more=True, fits=lambda _: False) is None
    while race.run(3) < EPOCHS:
        pass
    assert race.halving.next_up(are_more=False) == 2
    unlike = [number for number in range(5) if number not in (2, 4)]
    assert race.halving.next_up(are_more=False, fits=lambda number: number in unlike) == 1


def test_what_is_not_usable_is_no_finalist() -> None:
    """Those that failed, or broke a constraint: the next goes on in their place."""
    race = Race([0.9, 0.8, 0.7, 0.6], finalists=2)
    for _ in race.values:
        race.begin()
    order = []
    while (number := race.halving.next_up(are_more=False)) is not None:
        assert not race.halving.hopeless()
        if race.run(number) == EPOCHS:
            race.halving.ends(number, is_usable=number not in (0, 2))
            order.append(number)
    assert order == [0, 1, 2, 3]


def test_a_trial_waits_until_those_before_it_have_ended_well() -> None:
    race = Race([0.9, 0.8])
    for _ in race.values:
        race.begin()
    assert race.halving.next_up(are_more=False) == 0
    race.halving.begins(0)
    assert race.halving.hopeless() == ()
    race.halving.ends(0, is_usable=False)
    assert race.halving.hopeless() == ()
    while race.run(1) < EPOCHS:
        assert race.halving.next_up(are_more=False) == 1
    assert race.halving.next_up(are_more=False) is None


def test_a_trial_that_runs_is_not_handed_out_and_one_that_failed_still_counts() -> None:
    race = Race([0.9, 0.8, 0.1, 0.2], planned=9)
    for _ in range(2):
        race.begin()
    race.halving.begins(0)
    assert race.halving.next_up(are_more=True) is None
    race.halving.ends(0)
    race.begin()
    race.begin()
    assert race.halving.next_up(are_more=True) == 1
    assert 0 not in race.halving.waiting()


def test_the_value_at_a_point_is_the_best_until_there() -> None:
    halving = Halving(planned=9)
    for number, curve in enumerate([[0.7, 0.1, 0.1], [0.2, 0.3, 0.6]]):
        halving.follow(number, ALIKE, dict(enumerate(curve, start=1)))
    assert halving.next_up(are_more=True) == 0


def played(
    values: list[list[float]],
    order: random.Random,
    *,
    drops: bool,
    rebuilds: bool,
    failing: Collection[int] = (),
) -> Any:
    """(trials that ran to their end, all that was trained), of a study with up to three places.

    Those that are `failing` do when they have run to their end.
    """
    courses = [Course(f"kind {number % 3}", POINTS, EPOCHS) for number in range(len(values))]
    halving, drawn, running = Halving(len(values), 2), 0, dict[int, int]()
    over, epochs = set[int](), dict[int, int]()
    while True:
        if drops:
            for number in halving.hopeless():
                over.add(number)
                halving.ends(number)
        if rebuilds and not running:
            halving = Halving(len(values), 2)
            for number in range(drawn):
                curve = dict(enumerate(values[number][: epochs[number]], start=1))
                halving.follow(number, courses[number], curve)
                if number in over:
                    is_whole = epochs[number] == EPOCHS
                    halving.ends(number, is_usable=is_whole and number not in failing)
        if len(running) < 3:
            number = halving.next_up(are_more=drawn < len(values))
            if number is None and drawn < len(values):
                number, drawn = drawn, drawn + 1
                halving.follow(number, courses[number], {})
            if number is not None:
                running[number] = halving.begins(number) or EPOCHS
                continue
        if not running:
            whole = {number for number, epoch in epochs.items() if epoch == EPOCHS}
            return whole - {*failing}, epochs
        number = order.choice(sorted(running))
        until = running.pop(number)
        for epoch in range(epochs.get(number, 0) + 1, until + 1):
            halving.reported(number, epoch, values[number][epoch - 1])
        epochs[number] = until
        if until == EPOCHS:
            over.add(number)
            halving.ends(number, is_usable=number not in failing)
        else:
            halving.rests(number)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_dropped_as_hopeless_would_not_have_gone_on(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 30)
    values = [[draw.random() for _ in range(EPOCHS)] for _ in range(count)]
    failing = [number for number in range(count) if draw.random() < 0.2]
    known = {"rebuilds": False, "failing": failing}
    kept = played(values, random.Random(seed), drops=False, **known)
    assert played(values, random.Random(seed), drops=True, **known) == kept
    assert len(kept[0]) >= min(2, count - len(failing))


@pytest.mark.parametrize("seed", range(10))
def test_a_state_that_is_rebuilt_from_the_curves_goes_on_alike(seed: int) -> None:
    draw = random.Random(seed)
    values = [[draw.random() for _ in range(EPOCHS)] for _ in range(24)]
    known = {"drops": True, "failing": draw.sample(range(24), 4)}
    as_it_was = played(values, random.Random(seed), rebuilds=False, **known)
    assert played(values, random.Random(seed), rebuilds=True, **known) == as_it_was


def test_a_screening_is_the_point_before_all_others() -> None:
    halving = Halving(planned=9, screened=0.4)
    for number, value in enumerate([0.1, 0.9, 0.5, 0.7, 0.3]):
        halving.follow(number, ALIKE, {})
        assert halving.is_to_be_screened(number)
        halving.begins(number)
        assert halving.waiting() == tuple(range(number))
        halving.screened(number, value)
        halving.rests(number)
        assert not halving.is_to_be_screened(number)
    assert halving.waiting() == (0, 1, 2, 3, 4)
    for best in (1, 3):
        assert halving.next_up(are_more=True) == best
        assert halving.begins(best) == POINTS[0]
    assert halving.next_up(are_more=True) is None  # 0.4 of five
    for epoch, value in enumerate((0.1, 0.2, 0.3), start=1):
        halving.reported(3, epoch, value)
    halving.rests(3)
    for epoch, value in enumerate((0.1, 0.2, 0.25), start=1):
        halving.reported(1, epoch, value)
    halving.rests(1)
    assert halving.next_up(are_more=True) == 3  # by its own accuracy, whatever its screening's was
    assert halving.begins(3) == POINTS[1]


def test_trials_that_are_screened_only_then_run_to_their_end() -> None:
    whole = course_of(config(), waits=False)
    assert whole.points == ()
    halving = Halving(planned=2, screened=0.5)
    for number, value in enumerate([0.1, 0.9]):
        halving.follow(number, whole, {})
        halving.begins(number)
        halving.screened(number, value)
        halving.rests(number)
    assert halving.next_up(are_more=False) == 1
    assert halving.begins(1) is None
    assert halving.hopeless() == ()
    halving.reported(1, whole.epochs, 0.9)
    halving.ends(1)
    assert halving.hopeless() == (0,)


def test_most_of_a_long_search_is_dropped_as_it_goes() -> None:
    """Each keeps a checkpoint: no more wait than could still go on."""
    draw = random.Random(0)
    race = Race([draw.random() for _ in range(400)])
    waiting = []
    for _ in race.values:
        for number in race.halving.hopeless():
            race.halving.ends(number)
        while (number := race.halving.next_up(are_more=True)) is not None:
            race.run(number)
        race.begin()
        waiting.append(len(race.halving.waiting()))
    assert max(waiting) < 220
    assert waiting[-1] < 20
