"""Stopping: when the time is up, on a first signal, and at once on a second one."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from study.stopping import Stop, sigterm_interrupts

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    before = [signal.getsignal(number) for number in BOTH]
    yield
    assert [signal.getsignal(number) for number in BOTH] == before


def test_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [100.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stop, forever = Stop(said.append), Stop(said.append)
    clock[0] = 500.0
    assert not stop.stop_all()
    clock[0] = 100.0
    stop.within(5.0)
    for other in (3.0, None):
        forever.within(other)
    clock[0] = 104.9
    assert not stop.stop_all()
    assert not stop("trial", {})
    clock[0] = 105.0
    assert stop.stop_all()
    assert stop.stop_all()
    assert (stop.reason, said) == ("out of time", ["stopping (out of time)"])
    assert not forever.stop_all()
    assert forever.reason is None


@pytest.mark.parametrize("number", BOTH)
def test_first_signal_is_a_request_and_the_second_interrupts(number: signal.Signals) -> None:
    said = list[str]()
    stop = Stop(said.append)
    with sigterm_interrupts(), stop.on_signals():
        os.kill(os.getpid(), number)
        assert stop.stop_all()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert (stop.reason, said) == ("interrupted", ["stopping (interrupted)"])


def test_sigterm_is_taken_as_ctrl_c() -> None:
    with sigterm_interrupts(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_other_threads_are_left_without_signals() -> None:
    entered = list[bool]()

    def work() -> None:
        with sigterm_interrupts(), Stop(print).on_signals():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]


def test_tune_can_pickle_it() -> None:
    assert vars(pickle.loads(pickle.dumps(Stop(lambda text: None)))) == {}
