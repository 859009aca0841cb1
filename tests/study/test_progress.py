"""Progress: what the lines say, and how often."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from study.report.progress import Progress
from study.results import State, TrialRow
from trainable.records import VAL_ACCURACY, EpochRecord


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def trial(
    number: int, state: State = "running", seconds: float = 0.0, **fields: object
) -> TrialRow:
    known = {"role": "trial", "number": number, "state": state, "seconds": seconds}
    params = {"optim.lr": 0.05, "distill.decomposition": "5/2", "distill.k": 5, "distill.n": 2}
    return TrialRow.model_validate(known | {"directory": "/d", "params": params} | fields)


def record(epoch: int, accuracy: float = 0.5) -> EpochRecord:
    return EpochRecord(epoch, {VAL_ACCURACY: accuracy}, timestamp_ms=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def plain(out: io.StringIO, clock: Clock) -> Progress:
    """Progress into a file, four trials planned, two at once."""
    return Progress(4, 2, console=Console(file=out, width=80), clock=clock)


def test_plain_output_is_a_line_an_event(plain: Progress, out: io.StringIO, clock: Clock) -> None:
    with plain:
        plain.phase("searching")
        plain.trial_started(trial(0))
        for epoch in range(1, 6):
            clock.now += 1
            plain.epoch(trial(0), record(epoch), 5)
        plain.trial_ended(trial(0, "complete", 5.0, value=0.5, epochs=5))
        plain.trial_ended(trial(1, "failed", 1.0, error="ValueError: no\npictures"))
        plain.message("stopping: the time budget is spent")
    assert out.getvalue().splitlines() == [
        "searching",
        "trial 0 complete: val 50.00 %, 5 epochs, 5 s, lr=0.05, k/n=5/2",
        "trial 1 failed: ValueError: no pictures",
        "stopping: the time budget is spent",
    ]


def test_plain_progress_is_told_every_ten_seconds_at_most(
    plain: Progress, out: io.StringIO, clock: Clock
) -> None:
    with plain:
        plain.trial_started(trial(0))
        for epoch in range(1, 26):
            clock.now += 1
            plain.epoch(trial(0), record(epoch), 100)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "0/4 trials, best —, 3 min 20 s left"


def test_long_lines_are_not_broken(plain: Progress, out: io.StringIO) -> None:
    with plain:
        plain.message("x" * 300)
        plain.message("[red]no markup[/nonsense]")
    assert out.getvalue().splitlines() == ["x" * 300, "[red]no markup[/nonsense]"]


def test_status_counts_trials_of_the_search_only(plain: Progress) -> None:
    assert plain.status() == "0/4 trials, best —, — left"
    teacher = TrialRow(role="teacher", number=0, directory="/d", state="complete", value=0.9)
    plain.trial_ended(teacher)
    plain.trial_ended(trial(0, "complete", 10.0, value=0.5))
    plain.trial_ended(trial(1, "pruned", 4.0, value=0.7))
    plain.trial_ended(trial(2, "failed", 1.0))
    assert plain.status() == "3/4 trials, 1 pruned, 1 failed, best trial 0 50.00 %, 5 s left"


def test_a_trial_that_waits_is_no_ended_one_until_it_is(plain: Progress) -> None:
    for number in (0, 1):
        plain.trial_ended(trial(number, "waiting", 4.0, value=0.7))
    assert plain.status() == "0/4 trials, 2 waiting, best —, 4 s left"
    plain.trial_started(trial(1, value=0.7, epochs=2))
    assert plain.status() == "0/4 trials, 1 waiting, best —, 8 s left"
    plain.trial_ended(trial(1, "complete", 10.0, value=0.8))
    plain.trial_ended(trial(0, "pruned", 4.0, value=0.7))
    assert plain.status() == "2/4 trials, 1 pruned, best trial 1 80.00 %, 7 s left"


def test_screenings_are_counted_beside_the_trials(plain: Progress) -> None:
    for number in (0, 1):
        row = {"role": "screening", "number": number, "directory": "/d", "state": "complete"}
        plain.trial_ended(TrialRow.model_validate(row | {"value": 0.5}))
    plain.trial_ended(trial(0, "complete", 10.0, value=0.8))
    assert plain.status().startswith("1/4 trials, 2 screened, best trial 0 80.00 %")


def test_the_best_trial_is_one_that_keeps_to_the_constraints(plain: Progress) -> None:
    plain.trial_ended(trial(0, "complete", 10.0, value=0.5))
    plain.trial_ended(trial(1, "complete", 10.0, value=0.7, violates=("latency",)))
    assert "best trial 0 50.00 %" in plain.status()


def test_after_the_search_status_counts_what_it_is_compared_with(plain: Progress) -> None:
    plain.trial_ended(trial(0, "complete", 10.0, value=0.5))
    for number in range(2):
        plain.trial_ended(TrialRow(role="baseline", number=number, of="kd", directory="/d"))
    replicate = TrialRow(role="replicate", number=0, of="trial 0", directory="/d", state="complete")
    plain.trial_ended(replicate)
    assert plain.status() == "1/4 trials, best trial 0 50.00 %, 2 baseline trials, 1 replicate"
    plain.trial_started(trial(1))  # of an extension
    assert plain.status().endswith(" left")


def test_a_replicate_ends_without_a_validation(plain: Progress, out: io.StringIO) -> None:
    row = {"role": "replicate", "number": 1, "of": "trial 0", "directory": "/d", "epochs": 5}
    plain.trial_ended(TrialRow.model_validate(row | {"state": "complete", "seconds": 9.0}))
    assert out.getvalue() == "trial 0 replicate 1 complete: 5 epochs, 9 s\n"


def test_resumed_study_counts_what_ended_before() -> None:
    ended = [trial(0, "complete", 10.0, value=0.5), trial(1, "waiting", 10.0, value=0.6)]
    progress = Progress(4, 1, ended=ended, console=Console(file=io.StringIO()))
    assert progress.status() == "1/4 trials, 1 waiting, best trial 0 50.00 %, 20 s left"


def test_of_equal_accuracies_the_best_is_the_one_on_the_front() -> None:
    ended = [
        trial(number, "complete", 10.0, value=0.5, costs={"latency": latency})
        for number, latency in enumerate((2.0, 1.0))
    ]
    console = Console(file=io.StringIO())
    for objectives, best in ((("accuracy",), 0), (("accuracy", "latency"), 1)):
        progress = Progress(4, 1, ended=ended, objectives=objectives, console=console)
        assert f"best trial {best} 50.00 %" in progress.status()


@pytest.mark.parametrize("width", [80, 120])
def test_live_table(clock: Clock, width: int) -> None:
    out = io.StringIO()
    progress = Progress(4, 2, console=Console(file=out, width=width), clock=clock)
    progress.phase("searching")
    progress.trial_started(trial(0))
    progress.trial_started(trial(1))
    clock.now += 2
    progress.epoch(trial(0), record(1, 0.25), 5)
    out.seek(0)
    out.truncate()
    Console(file=out, width=width).print(progress)
    head, _, first, second = out.getvalue().splitlines()
    assert head == "searching  0/4 trials, best —, 18 s left"
    assert first.split()[:2] == ["trial", "0"]
    assert first.split()[-4:] == ["1/5", "25.00", "lr=0.05,", "k/n=5/2"]
    assert second.split()[-4:] == ["0/—", "—", "lr=0.05,", "k/n=5/2"]


def test_live_table_of_a_hundred_trials_at_once_fits_a_screen(clock: Clock) -> None:
    out = io.StringIO()
    progress = Progress(1000, 100, console=Console(file=out, width=80), clock=clock)
    for number in range(100):
        progress.trial_started(trial(number))
    Console(file=out, width=80).print(progress)
    head, _, *running, more = out.getvalue().splitlines()
    assert "0/1000 trials" in head
    assert [line.split()[1] for line in running] == [str(number) for number in range(20)]
    assert more == "and 80 more"


def test_terminal_shows_the_display_and_clears_it(clock: Clock) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, force_interactive=True)
    with Progress(4, 2, console=console, clock=clock) as progress:
        progress.phase("searching")
        progress.trial_started(trial(0))
        progress.trial_ended(trial(0, "complete", 5.0, value=0.5))
        progress.trial_ended(trial(1, "failed", 5.0, error="ValueError: no pictures"))
    text = out.getvalue()
    assert "trial 1 failed: ValueError: no pictures" in text
    assert "trial 0 complete" not in text  # the leaderboard will say it
    assert "searching" in text
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h")  # the cursor is shown again


def test_cursor_returns_after_an_error(clock: Clock) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, force_interactive=True)
    with pytest.raises(KeyboardInterrupt), Progress(4, 2, console=console, clock=clock):
        raise KeyboardInterrupt
    assert "\x1b[?25h" in out.getvalue()
