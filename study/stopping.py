"""When Tune ends before its trials do: on Ctrl-C or SIGTERM, or when the time is up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

from ray.tune.stopper import Stopper

Reason = Literal["interrupted", "out of time"]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop(Stopper):
    """Asks Tune to stop all trials, between two of its steps: nothing is cut short while it is written.

    Tune's own time budget and SIGINT handler tell neither the searcher nor the callbacks, and do not
    say which of them it was.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._deadline: float | None = None
        self._announce = announce
        self._announced = False
        self.reason: Reason | None = None

    def within(self, seconds: float | None) -> None:
        """From now on the time is up after so many seconds; None sets no limit."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles it for a restore that is not used here."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether the time is up, or somebody wants it to stop."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = self.reason or "out of time"  # a signal may have come before
        if self.reason is not None and not self._announced:
            self._announced = True
            self._announce(f"stopping ({self.reason})")
        return self.reason is not None

    @contextmanager
    def on_signals(self) -> Generator[None]:
        """In this block the first SIGINT or SIGTERM is a request; the second acts as it did before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def request(number: int, frame: FrameType | None) -> None:
            self.reason = "interrupted"
            restore()

        for number in _SIGNALS:
            signal.signal(number, request)
        try:
            yield
        finally:
            restore()


@contextmanager
def sigterm_interrupts() -> Generator[None]:
    """In this block SIGTERM (`ray job stop`, Slurm, Docker) is taken as Ctrl-C is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
