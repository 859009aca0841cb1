"""Trials that share a GPU, and one that finds no memory there."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.conftest import MakeConfig
from tests.trainable.trials import numbers, train
from trainable.config import TrialConfig
from trainable.engine import neighbours
from trainable.engine.checkpoint import BEST
from trainable.engine.loop import TrialTask, run
from trainable.engine.neighbours import SharedGpu, do_on, notes_of, run_on
from trainable.engine.step import Step
from trainable.errors import OutOfMemoryError, TrainingError
from trainable.records import EpochRecord

CPU = torch.device("cpu")
HOLDER = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); input()"
IN_EPOCH_2 = 30
"""Of 17 updates an epoch."""
SOON_S = 10.0
"""Until what must happen has happened."""
A_WHILE_S = 0.2
"""In which what must not happen would have happened."""


@pytest.fixture
def gpu(tmp_path: Path) -> SharedGpu:
    return SharedGpu("gpu-0", tmp_path / "locks")


class Visit:
    """Somebody on the GPU, in a thread of its own."""

    def __init__(self, place: Any) -> None:
        self.arrived, self._leaves = threading.Event(), threading.Event()

        def visit() -> None:
            with place:
                self.arrived.set()
                self._leaves.wait(SOON_S)

        self._thread = threading.Thread(target=visit, daemon=True)
        self._thread.start()

    def leave(self) -> None:
        self._leaves.set()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()

    @property
    def is_there(self) -> bool:
        return self.arrived.wait(SOON_S)

    @property
    def stays_out(self) -> bool:
        return not self.arrived.wait(A_WHILE_S)


def test_several_are_beside_each_other(gpu: SharedGpu) -> None:
    visits = [Visit(gpu.beside_others()) for _ in range(4)]
    assert all(visit.is_there for visit in visits)
    for visit in visits:
        visit.leave()


def test_one_alone_waits_for_all_and_who_comes_later_waits_for_it(gpu: SharedGpu) -> None:
    first, second = Visit(gpu.beside_others()), Visit(gpu.beside_others())
    assert first.is_there
    assert second.is_there
    alone = Visit(gpu.alone())
    assert alone.stays_out
    late = Visit(gpu.beside_others())
    assert late.stays_out  # or there might always be somebody before the one that waits
    first.leave()
    assert alone.stays_out
    second.leave()
    assert alone.is_there
    assert late.stays_out
    alone.leave()
    assert late.is_there
    late.leave()


def test_two_that_want_to_be_alone_are_so_one_after_the_other(gpu: SharedGpu) -> None:
    one = Visit(gpu.alone())
    assert one.is_there
    other = Visit(gpu.alone())
    assert other.stays_out
    one.leave()
    assert other.is_there
    other.leave()


def test_another_gpu_is_another_place(tmp_path: Path) -> None:
    visits = [Visit(SharedGpu(f"gpu-{number}", tmp_path).alone()) for number in range(2)]
    assert all(visit.is_there for visit in visits)
    for visit in visits:
        visit.leave()


def test_nobody_waits_for_a_process_that_was_killed(gpu: SharedGpu, tmp_path: Path) -> None:
    with gpu.beside_others():
        pass
    (lock,) = (tmp_path / "locks").glob("*.trials")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    alone = Visit(gpu.alone())
    assert alone.stays_out
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert alone.is_there
    alone.leave()


# ------------------------------------------------------------------------------------------- a trial without memory
def has_to_wait(lock: Path, kind: int) -> bool:
    """Whoever wants this kind of lock now."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Attempts:
    """In place of the loop, or of other work: raises what it is given, one a call; keeps who else could be there."""

    def __init__(self, lock: Path, *errors: Exception | None) -> None:
        self._lock, self._errors = lock, iter(errors)
        self.were_alone: list[bool] = []

    def __call__(self, *_: Any) -> str:
        self.were_alone.append(has_to_wait(self._lock, fcntl.LOCK_SH))
        if (error := next(self._errors)) is not None:
            raise error
        return "done"


@pytest.fixture
def attempt(
    gpu: SharedGpu, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Attempts]]:
    """Run a trial that raises these errors."""

    def run_with(*errors: Exception | None, shared: SharedGpu | None = gpu) -> Attempts:
        with gpu.beside_others():
            pass
        attempts = Attempts(tmp_path / "locks" / "gpu-0.trials", *errors)
        monkeypatch.setattr(neighbours, "run", attempts)
        task = TrialTask(make_config(distill={"method": "none"}), tmp_path, None)
        try:
            run_on(shared, task, lambda record: None, CPU)
        except TrainingError as error:
            attempts.error = error  # type: ignore[attr-defined]
        return attempts

    return run_with


def test_a_trial_with_enough_memory_has_others_beside_it(attempt: Any, tmp_path: Path) -> None:
    assert attempt(None).were_alone == [False]
    assert notes_of(tmp_path) == ()


def test_without_memory_it_goes_on_alone_and_says_so(attempt: Any, tmp_path: Path) -> None:
    attempts = attempt(OutOfMemoryError("rank 0: out of\nmemory on cuda"), None)
    assert attempts.were_alone == [False, True]
    (note,) = notes_of(tmp_path)
    assert note.endswith(" rank 0: out of memory on cuda")


def test_without_memory_alone_it_is_its_own_fault(attempt: Any, tmp_path: Path) -> None:
    attempts = attempt(OutOfMemoryError("at first"), OutOfMemoryError("alone"))
    assert attempts.were_alone == [False, True]
    assert str(attempts.error) == "alone"
    assert len(notes_of(tmp_path)) == 1


def test_another_error_is_not_tried_again(attempt: Any, tmp_path: Path) -> None:
    attempts = attempt(TrainingError("diverged"))
    assert attempts.were_alone == [False]
    assert str(attempts.error) == "diverged"
    assert notes_of(tmp_path) == ()


def test_on_a_gpu_of_its_own_nothing_is_tried_again(attempt: Any, tmp_path: Path) -> None:
    attempts = attempt(OutOfMemoryError("mine"), shared=None)
    assert str(attempts.error) == "mine"
    assert notes_of(tmp_path) == ()


def test_a_gpu_that_failed_cannot_give_back_what_was_used_and_says_why_it_failed(
    attempt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty_cache() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    assert str(attempt(TrainingError("where it was noticed")).error) == "where it was noticed"


# ------------------------------------------------------------------------------------- other work without memory
WORDS = (
    "rank 0: out of memory on cpu: scoring the student on test must fit into memory; let fewer trials share the "
    "device (resources.gpus_per_worker), or use a larger one"
)
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    OutOfMemoryError("in words"),
]


class Scoring:
    """Work that is no trial, on a shared GPU."""

    def __init__(self, gpu: SharedGpu, folder: Path, patch: pytest.MonkeyPatch) -> None:
        with gpu.beside_others():
            pass
        self._gpu, self._lock = gpu, folder / "locks" / "gpu-0.trials"
        self.given_back: list[bool] = []
        """When, if others had to wait then."""
        patch.setattr(torch.cuda, "empty_cache", self._empty_cache)

    def __call__(self, *errors: Exception | None, is_shared: bool = True) -> str:
        self.attempts = Attempts(self._lock, *errors)
        gpu = self._gpu if is_shared else None
        return do_on(gpu, self.attempts, CPU, "scoring the student on test")

    def _empty_cache(self) -> None:
        self.given_back.append(has_to_wait(self._lock, fcntl.LOCK_EX))


@pytest.fixture
def scoring(gpu: SharedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scoring:
    return Scoring(gpu, tmp_path, monkeypatch)


def test_other_work_leaves_nothing_on_the_gpu_before_another_takes_its_place(
    scoring: Scoring,
) -> None:
    assert scoring(None) == "done"
    assert scoring.attempts.were_alone == [False]
    assert scoring.given_back == [True]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_other_work_without_memory_is_done_again_alone(
    error: Exception, scoring: Scoring, caplog: pytest.LogCaptureFixture
) -> None:
    assert scoring(error, None) == "done"
    assert scoring.attempts.were_alone == [False, True]
    assert scoring.given_back == [True, True]
    words = "in words" if isinstance(error, OutOfMemoryError) else WORDS
    assert caplog.messages == [f"once more, alone on the GPU: {words}"]


@pytest.mark.parametrize("is_shared", [True, False])
def test_without_memory_alone_it_is_the_works_own_fault_in_words(
    is_shared: bool, scoring: Scoring
) -> None:
    errors = NO_MEMORY[:2] if is_shared else NO_MEMORY[:1]
    with pytest.raises(OutOfMemoryError) as caught:
        scoring(*errors, is_shared=is_shared)
    assert str(caught.value) == WORDS
    assert scoring.attempts.were_alone == ([False, True] if is_shared else [False])


def test_another_error_of_other_work_comes_out_as_it_is(scoring: Scoring) -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        scoring(RuntimeError("shapes"))
    assert scoring.attempts.were_alone == [False]
    assert scoring.given_back == [True]


# ------------------------------------------------------------------------------------- a trial that begins again
class Full(Step):
    """Finds no memory once, in the middle of the second epoch; what it holds must go before the trial begins again."""

    calls = 0
    failed: weakref.ref[Step] | None = None

    def accumulate(self, images: torch.Tensor, *arguments: Any, **named: Any) -> None:
        Full.calls += 1
        if Full.calls == IN_EPOCH_2:
            Full.failed = weakref.ref(self)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if Full.failed is not None:
            assert Full.failed() is None, "what a trial without memory held is still there"
        super().accumulate(images, *arguments, **named)


def test_a_trial_that_began_again_ends_as_if_it_had_not(
    make_config: MakeConfig, gpu: SharedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: TrialConfig = make_config(distill={"method": "none"}, train={"epochs": 3})
    whole = numbers(train(config, tmp_path / "whole"))
    monkeypatch.setattr("trainable.engine.loop.Step", Full)
    monkeypatch.setattr(Full, "calls", 0)
    reported: list[EpochRecord] = []
    task = TrialTask(config, tmp_path / "again", None)
    monkeypatch.setattr(neighbours, "run", run)
    run_on(gpu, task, reported.append, CPU)
    assert Full.failed is not None, f"it was to fail, and took {Full.calls} updates"
    last = {record.epoch: record for record in reported}
    assert numbers(list(last.values())) == whole
    assert (tmp_path / "again" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
    (note,) = notes_of(tmp_path / "again")
    assert "epoch 2" in note
    assert "out of memory on cpu" in note
    assert [record.epoch for record in reported] == [1, 1, 2, 3]  # the first was told again
