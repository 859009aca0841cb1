"""SyncBatchNorm of two ranks (gloo) in what torch.compile makes of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.trainable.norm_layers import (
    LAYERS,
    SHARES,
    check_close,
    check_joined,
    layer_of,
    results_of,
    sync,
)
from tests.trainable.test_sync_batchnorm import STEPS, read, steps_of
from trainable import ranks
from trainable.compiled import Compiler
from trainable.networks.recompute import apply

RANKS = 2
FORMS: dict[str, dict[str, Any]] = {
    "fp64": {"kind": torch.float64},
    "bf16": {"kind": torch.float32, "half": torch.bfloat16},
}
BOUNDS = {"fp64": 1e-9, "bf16": 2e-2}


class Compiled(nn.Module):
    """A layer as a block of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.compiler = Compiler(SHARES[RANKS][ranks.rank()])

    def forward(self, x: Tensor) -> Tensor:
        with self.compiler.at_work(len(x)):
            return apply([self.layer], x)


def layers() -> dict[str, Any]:
    """Of every kind, and whether each was compiled; without Inductor, whose kernels take minutes to make."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        whole = functools.partial(torch.compile, backend="aot_eager")
        patch.setattr(torch, "compile", whole)
        for case in LAYERS:
            for name, form in FORMS.items():
                layer = Compiled(sync(layer_of(case, form["kind"])))
                results = results_of(layer, case, **form)
                for part in ("weights", "state"):
                    named = results[part].items()
                    results[part] = {key.removeprefix("layer."): v for key, v in named}
                found[f"{case} {name}"] = {**results, "refused": layer.compiler.is_refused}
    return found


class Refusing(Compiler):
    """Could not compile on this rank."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.is_refused = True


def students() -> dict[str, Any]:
    """Updates that are compiled by Inductor: on both ranks, on the first alone, and with frozen statistics."""
    found: dict[str, Any] = {}
    size = SHARES[RANKS][ranks.rank()]
    second = Refusing if ranks.rank() == 1 else Compiler
    for name, make in {"once": Compiler, "on one": second, "frozen": Compiler}.items():
        compiler = make(size)
        settings = STEPS.get(name, {})
        found[name] = steps_of(**settings, compiler=compiler)
        found[f"{name} refused"] = compiler.is_refused
    return found


def _rank(number: int, folder: str, act: Callable[[], dict[str, Any]], groups: int) -> None:
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    torch.set_num_threads(1)
    for group in range(groups):
        rank = (number + group) % RANKS  # in a later group the other one
        store = f"file://{folder}/{group}.store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
        torch.save(act(), f"{folder}/{group}-{rank}.pt")
        dist.destroy_process_group()


def on_two_ranks(
    folder: Path, act: Callable[[], dict[str, Any]], groups: int = 1
) -> list[list[dict[str, Any]]]:
    """What was found in each process group by each rank."""
    mp.spawn(_rank, (str(folder), act, groups), nprocs=RANKS)
    return [[read(folder / f"{g}-{r}.pt") for r in range(RANKS)] for g in range(groups)]


@pytest.fixture(scope="module")
def compiled_layers(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return on_two_ranks(tmp_path_factory.mktemp("layers"), layers, groups=2)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", LAYERS)
def test_compiled_ranks_together_are_batchnorm_of_the_joined_batch(
    case: str, form: str, compiled_layers: list[list[dict[str, Any]]]
) -> None:
    """Also in a later process group, where each is the other one."""
    alone = results_of(layer_of(case, FORMS[form]["kind"]), case, **FORMS[form])
    for group in compiled_layers:
        found = [results[f"{case} {form}"] for results in group]
        assert [each["refused"] for each in found] == [False] * RANKS
        check_joined(found, alone, BOUNDS[form])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_updates_of_a_compiled_student_are_those_of_one_rank(tmp_path: Path) -> None:
    """Compiled on both, or on one alone: exchanges are then the same in the same order, past shortcuts too."""
    (found,) = on_two_ranks(tmp_path, students)
    for name in ("once", "on one", "frozen"):
        expected = steps_of(**STEPS.get(name, {}))
        refused = [results[f"{name} refused"] for results in found]
        assert refused == [False, name == "on one"]
        for results in found:
            for mine, theirs in zip(results[name]["gradients"], expected["gradients"], strict=True):
                for a, b in zip(mine, theirs, strict=True):
                    check_close(a, b, 1e-6)
            for key, value in expected["state"].items():
                check_close(results[name]["state"][key], value, 1e-6)
