"""Which calls are captured and replayed, on a CPU with a stand-in for CUDA's graphs; tests/gpu has the real ones."""

from __future__ import annotations

import gc
import logging
import random
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainable.trials import MakeConfig, numbers, train, untrained_teacher
from trainable.engine import graph, loop
from trainable.engine.failures import Progress
from trainable.engine.graph import Graphs
from trainable.engine.updater import Updater
from trainable.errors import TrainingError

ONES = (torch.ones(3),)
CUDA = torch.device("cuda")


class Cuda:
    """Stands for torch.cuda: what is captured has no effect, and is run by a replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capturing = self.breaks = False
        self.mode, self.stream, self.pools = "default", "own", 0
        for name in (
            "current_stream",
            "graph_pool_handle",
            "graph",
            "set_stream",
            "set_sync_debug_mode",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        self.filling: int | None = None
        """The pool whose capture the allocator takes to go on."""
        self.released: list[int] = []
        self.states: list[str] = []
        """That the generator was given."""
        generator = SimpleNamespace(
            clone_state=lambda: "fresh", graphsafe_set_state=self.states.append
        )
        monkeypatch.setattr(torch.cuda, "default_generators", {None: generator})
        monkeypatch.setattr(graph, "_IS_TIDY", False)
        monkeypatch.setattr(graph, "_END_ALLOCATING", self.end_allocating)
        monkeypatch.setattr(graph, "_RELEASE", lambda _, pool: self.released.append(pool))

    def current_stream(self) -> str:
        return self.stream

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    def set_sync_debug_mode(self, mode: str) -> None:
        self.mode = mode

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    def end_allocating(self, _: int | None, pool: int) -> None:
        if self.filling != pool:
            raise RuntimeError("not currently recording")
        self.filling = None

    @contextmanager
    def graph(self, _: Graph, *, pool: int, **__: Any) -> Iterator[None]:
        self.capturing, self.filling = True, pool
        try:
            yield
        finally:
            self.capturing = False
            if self.breaks:
                self.stream = "the capture's"
                raise RuntimeError("operation failed")
            self.filling = None


class Graph:
    """A captured one."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.replays = cuda, 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


class Calls:
    """A function that notes how it was run."""

    def __init__(self, cuda: Cuda, does: Callable[[], object] = lambda: None) -> None:
        self.cuda, self.does, self.log = cuda, does, list[str]()

    def __call__(self, inputs: Sequence[Tensor]) -> None:
        assert len(inputs) == 1
        self.log.append("captured" if self.cuda.capturing else "eager")
        self.does()


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message.partition(" graphs: ")[2] for record in caplog.records]


def test_every_kind_is_captured_once_after_two_calls(
    cuda: Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    graphs, calls = Graphs(abandon=lambda: None), Calls(cuda)
    for kind in "abbbaab":
        graphs.call(kind, calls, ONES)
    assert calls.log == ["eager", "eager", "captured", "captured"]
    assert cuda.pools == 1
    graphs.forget()
    for _ in range(3):
        graphs.call("a", calls, ONES)
    assert calls.log[4:] == ["eager", "eager", "captured"]
    assert cuda.pools == 2
    assert refusals(caplog) == []


def test_a_replay_reads_the_inputs_of_its_call(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Tensor]] = []

    def note(inputs: Sequence[Tensor]) -> None:
        if cuda.capturing:
            own = list(inputs)
            monkeypatch.setattr(Graph, "replay", lambda _: seen.append([t.clone() for t in own]))

    graphs = Graphs(abandon=lambda: None)
    for number in range(5):
        graphs.call("a", note, [torch.full((3,), float(number)), torch.tensor(number)])
    assert [(a.tolist(), b.item()) for a, b in seen] == [([n] * 3, n) for n in (2, 3, 4)]


def wait() -> None:
    """As CUDA says it."""
    if torch.cuda.set_sync_debug_mode.__self__.mode == "warn":  # type: ignore[attr-defined]
        warnings.warn("called a synchronizing CUDA operation (Triggered …)", stacklevel=1)


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (wait, "a network or method waits for the device"),
        (random.random, "a network or method draws random numbers on the host"),
        (lambda: torch.rand(1), "a network or method draws random numbers on the host"),
    ],
)
def test_what_a_graph_cannot_repeat_is_not_captured(
    does: Callable[[], object], reason: str, cuda: Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    graphs, calls = Graphs(abandon=lambda: None), Calls(cuda, does)
    for _ in range(5):
        graphs.call("a", calls, ONES)
    graphs.forget()
    for _ in range(5):
        graphs.call("a", calls, ONES)
    assert calls.log == ["eager"] * 10
    assert refusals(caplog) == [reason]
    assert cuda.mode == "default"


def test_a_capture_that_breaks_off_is_said_once_and_forgotten(
    cuda: Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    abandoned: list[bool] = []
    graphs, calls = Graphs(abandon=lambda: abandoned.append(True)), Calls(cuda)
    cuda.breaks = True
    for _ in range(5):
        graphs.call("a", calls, ONES)
    assert calls.log == ["eager", "eager", "captured", "eager", "eager", "eager"]
    assert (abandoned, cuda.stream) == ([True], "own")
    assert (cuda.filling, cuda.released, cuda.states) == (None, [1], ["fresh"])
    assert refusals(caplog) == ["operation failed"]


def test_a_function_that_fails_is_captured_to_the_end_and_its_pool_is_not_released_twice(
    cuda: Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        if cuda.capturing:
            raise RuntimeError("of the function")

    graphs, calls = Graphs(abandon=lambda: None), Calls(cuda, fails)
    for _ in range(3):
        graphs.call("a", calls, ONES)
    assert (cuda.filling, cuda.released, cuda.states) == (None, [], [])
    assert refusals(caplog) == ["of the function"]


def test_where_memory_is_wanting_before_a_capture_the_log_says_so_and_calls_go_on(
    cuda: Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    class Wanting(Tensor):
        def clone(self, **_: Any) -> Tensor:
            raise torch.OutOfMemoryError("no memory")

    graphs, calls = Graphs(abandon=lambda: None), Calls(cuda)
    for _ in range(4):
        graphs.call("a", calls, [torch.ones(3).as_subclass(Wanting)])
    assert calls.log == ["eager"] * 4
    assert (cuda.pools, cuda.released) == (0, [])
    assert refusals(caplog) == ["no memory"]


def test_python_looks_for_no_cycles_while_a_call_is_captured(cuda: Cuda) -> None:
    found: list[bool] = []
    graphs, calls = Graphs(abandon=lambda: None), Calls(cuda, lambda: found.append(gc.isenabled()))
    for _ in range(3):
        graphs.call("a", calls, ONES)
    assert found == [True, True, False]
    assert gc.isenabled()


class Replayed(Updater):
    """On a CPU; its graphs are replayed by running the update once more, on their own inputs."""

    count = 0

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._graphs = Rerun(abandon=lambda: None)


class Rerun(Graphs):
    """Captures by remembering the function."""

    def call(self, kind: Any, function: Any, inputs: Sequence[Tensor]) -> None:
        self._calls += 1
        if self._calls <= 2:
            function(inputs)
            return
        Replayed.count += 1
        function([tensor.clone() for tensor in inputs])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": {"epochs": 2, "accumulate": 2}},
        {"train": {"epochs": 2, "precision": "bf16", "clip": 1.0}},
        {"optim": {"name": "adamw", "lr": 1e-3}},
        {
            "distill": {"method": "stablekd", "alpha": None, "lam": 1.0, "decomposition": "5/2"},
            "train": {"epochs": 3},
        },
    ],
    ids=["plain", "accumulate", "clip", "adamw", "stages"],
)
def test_a_trial_of_replays_ends_in_the_bits_of_one_without(
    changes: dict[str, Any],
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(**changes)
    teacher = untrained_teacher(config, tmp_path)
    plain = train(config, tmp_path / "plain", teacher)
    monkeypatch.setattr(loop, "Updater", Replayed)
    monkeypatch.setattr(Replayed, "count", 0)
    assert numbers(train(config, tmp_path / "replayed", teacher)) == numbers(plain)
    assert Replayed.count > 5


def test_a_trial_is_freed_at_its_end(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when Python next looks for cycles: its data and networks fill the device."""
    kept: list[weakref.ref[Updater]] = []

    class Watched(Replayed):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            kept.append(weakref.ref(self))

    monkeypatch.setattr(loop, "Updater", Watched)
    config = make_config()
    teacher = untrained_teacher(config, tmp_path)
    gc.collect()
    gc.disable()
    try:
        train(config, tmp_path / "trial", teacher)
        assert [ref() for ref in kept] == [None]
    finally:
        gc.enable()


def test_a_trial_that_fails_gives_its_graphs_back(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps the error keeps the trial; with its graphs alive, NCCL would not let go of the process group."""
    held: list[int] = []

    class Failing(Replayed):
        def take(self, *inputs: Any) -> None:
            super().take(*inputs)
            if Replayed.count == 3:
                raise ValueError("stopped by the test")

        def release(self) -> None:
            assert self._graphs is not None
            before = self._graphs._calls
            super().release()
            held.extend((before, self._graphs._calls))

    monkeypatch.setattr(loop, "Updater", Failing)
    monkeypatch.setattr(Replayed, "count", 0)
    config = make_config()
    teacher = untrained_teacher(config, tmp_path)
    with pytest.raises(TrainingError, match="stopped by the test"):
        train(config, tmp_path / "trial", teacher)
    assert held == [5, 0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"train": {"gradient_noise": 0.1}}, "train.gradient_noise"),
        ({"train": {"activation_checkpointing": True}}, "train.activation_checkpointing"),
        ({"data": {"augment": {"mixup": 0.2}}}, "data.augment.mixup"),
        ({"train": {"cuda_graph": False, "gradient_noise": 0.1}}, None),
    ],
)
def test_what_is_known_beforehand_is_said_and_leaves_batchnorm_to_torch(
    changes: dict[str, Any],
    reason: str | None,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen: list[dict[str, bool]] = []
    step: Any = SimpleNamespace(
        abandon=None, choose_kernels=lambda **kernels: chosen.append(kernels)
    )
    feed: Any = None
    with caplog.at_level(logging.WARNING):
        Updater(make_config(**changes), feed, None, step, Progress(), CUDA)
    said = refusals(caplog)
    assert len(said) == (reason is not None)
    assert reason is None or said[0].startswith(reason)
    assert chosen == [{"compiles": False, "own_norms": not changes}]
