"""Two ranks (gloo) capture and replay the same or none, with the stand-in for CUDA's graphs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.test_graph import Cuda, Graph, Replayed
from tests.trainable.trials import CPU, numbers, untrained_teacher
from trainable import ranks
from trainable.config import TrialConfig
from trainable.engine import loop
from trainable.engine.graph import Graphs
from trainable.engine.loop import TrialTask, run
from trainable.records import EpochRecord

RANKS, KINDS = 2, "abbbaab"
CONFIG = TrialConfig.model_validate(
    {
        "data": {"source": "digits", "val_fraction": 0.25, "batch_size": 64, "subset": 0.25},
        "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
        "student": {"model": "mini_resnet_10_4"},
        "distill": {"method": "stablekd", "alpha": 0.5, "decomposition": "5/1"},
        "train": {"epochs": 2, "workers": RANKS, "accumulate": 2, "batchnorm": {"sync": True}},
        "resources": {"gpus_per_worker": 0},
    }
)


class Exchanges:
    """What this rank exchanged, in order: an update's gradients, and words about it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self._all_reduce = dist.all_reduce
        patch.setattr(dist, "all_reduce", self._noted)

    def _noted(self, tensor: Tensor, *rest: Any, **named: Any) -> Any:
        self.made.append("word" if tensor.dim() == 0 else f"{len(tensor)} gradients")
        return self._all_reduce(tensor, *rest, **named)


class Updates:
    """A function that exchanges gradients, as all ranks do at once; what is captured does so in each replay."""

    def __init__(self, cuda: Cuda, does: Callable[[], object] = lambda: None) -> None:
        self._cuda, self._does = cuda, does
        self.log: list[str] = []
        self.sum = torch.zeros(3)

    def __call__(self, inputs: Sequence[Tensor]) -> None:
        self.log.append("captured" if self._cuda.capturing else "eager")
        self._does()
        if not self._cuda.capturing:
            self.exchange()

    def exchange(self) -> None:
        gradients = torch.full((3,), 1.0 + ranks.rank())
        dist.all_reduce(gradients)
        self.sum += gradients


def wait() -> None:
    """As CUDA says it, on one rank."""
    if ranks.rank() == 1:
        warnings.warn("called a synchronizing CUDA operation (Triggered …)", stacklevel=1)


def calls(*, waits: bool = False, breaks: bool = False) -> dict[str, Any]:
    """Seven calls, then three in a later stage; rank 1 alone waits for the device, or breaks its captures."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage().partition(" graphs: ")[2])
    log = logging.getLogger("trainable.engine.graph")
    log.addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        cuda, exchanges = Cuda(patch), Exchanges(patch)
        cuda.breaks = breaks and ranks.rank() == 1
        updates = Updates(cuda, wait if waits else lambda: None)
        patch.setattr(Graph, "replay", lambda _: (updates.log.append("replay"), updates.exchange()))
        abandoned: list[None] = []
        graphs = Graphs(abandon=lambda: abandoned.append(None))
        for stage in (KINDS, "aab"):
            graphs.forget()
            for kind in stage:
                graphs.call(kind, updates, (torch.ones(3),))
    log.removeHandler(handler)
    found = {"log": updates.log, "made": exchanges.made, "sum": updates.sum.tolist()}
    return {**found, "abandoned": len(abandoned), "said": said}


def trained() -> dict[str, Any]:
    """A trial as it is, and one of replays."""
    found: dict[str, Any] = {}
    folder = Path.cwd()
    for name, updater in (("plain", loop.Updater), ("replayed", Replayed)):
        loop.Updater = updater
        told: list[EpochRecord] = []
        run(TrialTask(CONFIG, folder / name, folder / "teacher.safetensors"), told.append, CPU)
        found[name] = numbers(told)
    return {**found, "replays": Replayed.count}


def _rank(rank: int, folder: str, acts: dict[str, Callable[[], Any]]) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    torch.save({name: act() for name, act in acts.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(folder: Path, **acts: Callable[[], Any]) -> list[dict[str, Any]]:
    run_on_ranks(_rank, str(folder), acts, ranks=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One spawn for all calls."""
    waits, breaks = partial(calls, waits=True), partial(calls, breaks=True)
    folder = tmp_path_factory.mktemp("graphs")
    return on_two_ranks(folder, captured=calls, waits=waits, breaks=breaks)


@pytest.mark.parametrize("case", ["captured", "waits", "breaks"])
def test_ranks_exchange_the_same_in_the_same_order(
    case: str, on_ranks: list[dict[str, Any]]
) -> None:
    """Whichever of them waits or breaks off; and every update's gradients once."""
    first, second = (results[case] for results in on_ranks)
    assert first["made"] == second["made"]
    assert first["made"].count("3 gradients") == len(KINDS) + 3
    assert first["sum"] == second["sum"] == [3.0 * (len(KINDS) + 3)] * 3


def test_all_ranks_capture_and_replay(on_ranks: list[dict[str, Any]]) -> None:
    for results in on_ranks:
        log = results["captured"]["log"]
        first = ["eager", "eager", "captured", "replay", "replay", "captured", *["replay"] * 3]
        assert log == [*first, "eager", "eager", "captured", "replay"]
        assert results["captured"]["said"] == []


def test_a_wait_on_one_rank_has_all_go_on_kernel_by_kernel(on_ranks: list[dict[str, Any]]) -> None:
    for results in on_ranks:
        assert results["waits"]["log"] == ["eager"] * (len(KINDS) + 3)
    said = [results["waits"]["said"] for results in on_ranks]
    assert said == [
        ["another rank cannot be captured"],
        ["a network or method waits for the device"],
    ]


def test_a_capture_that_breaks_off_on_one_rank_is_given_up_on_all(
    on_ranks: list[dict[str, Any]],
) -> None:
    for results in on_ranks:
        found = results["breaks"]
        assert found["log"] == ["eager", "eager", "captured", *["eager"] * 8]
        assert found["abandoned"] == 1
    said = [results["breaks"]["said"] for results in on_ranks]
    assert said == [["another rank cannot be captured"], ["operation failed"]]


@pytest.mark.slow
def test_a_trial_of_replays_ends_in_the_bits_of_one_without(tmp_path: Path) -> None:
    """With SyncBatchNorm, two micro-batches an update, and two stages."""
    untrained_teacher(CONFIG, tmp_path)
    first, second = (results["trials"] for results in on_two_ranks(tmp_path, trials=trained))
    assert first == second
    assert first["replayed"] == first["plain"]
    assert first["replays"] == 4
