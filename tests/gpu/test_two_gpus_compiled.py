"""Compiled updates of two ranks (NCCL) with SyncBatchNorm, as CUDA graphs: near those kernel by kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.stepping import CAPTURED, SIZE, STABLE, Setup
from tests.gpu.test_two_gpus import KD, relative, said, share_of
from tests.gpu.test_two_gpus_by_graph import Launches, on_the_host
from tests.gpu.two_ranks import on_two_ranks
from trainable import ranks
from trainable.compiled import Compiler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.timeout(100),
]
UPDATES, LIMIT_S = 8, 90
STEPS: dict[str, dict[str, Any]] = {
    "kd": {"distill": KD},
    "stages": {"distill": STABLE, "accumulate": 2},
}
FP16: dict[str, Any] = {"precision": "fp16", "loss_scale": {"initial": 1024.0}}
"""With a scale at which nothing is skipped."""
FORMS = ("eager", "compiled")
STATISTICS, FIRST, LAST = 0.01, 0.05, 0.2
"""Allowed |a − b|₂ / |b|₂: of all running statistics after the first update, and of the way that all parameters have
gone after it and after the last."""


def updates(device: torch.device, settings: dict[str, Any], *, compile: bool) -> dict[str, Any]:
    """Compiled and captured, or neither."""
    with pytest.MonkeyPatch.context() as patch:
        launches, reasons = Launches(patch), list[str]()
        patch.setattr(Compiler, "refuse", lambda _, error: reasons.append(str(error)))
        setup = Setup(**settings, **FP16, sync=True, graph=compile, device=device)
        setup.share = share_of(ranks.rank())
        if compile:
            setup.step.compile_for(SIZE // ranks.world_size() // setup.micro_batches)
        found: dict[str, Any] = {"begun": on_the_host(setup.state())}
        setup.update()
        found["once"] = on_the_host(setup.state())
        for _ in range(UPDATES - 1):
            setup.update()
        found["last"] = on_the_host(setup.state())
        found["skipped"] = setup.step.health.flush().total
        found |= {"launches": launches.count, "refused": reasons}
        if setup.graphs is not None:
            found["waits"] = said(lambda: [setup.update() for _ in range(5)])
            torch.cuda.synchronize()
            setup.graphs.forget()
    return found


def forms(device: torch.device, folder: Path) -> dict[str, Any]:
    del folder
    return {
        name: {form: updates(device, settings, compile=form == "compiled") for form in FORMS}
        for name, settings in STEPS.items()
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return on_two_ranks(forms, tmp_path_factory.mktemp("compiled"), LIMIT_S)


def joined(state: dict[str, Tensor], *, statistics: bool) -> Tensor:
    """The student's running statistics or its parameters, all in one."""
    of_statistics = ("running_mean", "running_var")
    own = {
        name: value.double().flatten()
        for name, value in state.items()
        if value.is_floating_point()
        and name.startswith("network.")
        and name.endswith(of_statistics) == statistics
    }
    assert len(own) > 10
    return torch.cat(list(own.values()))


def way(form: dict[str, Any], when: str) -> Tensor:
    """That the parameters have gone until then."""
    return joined(form[when], statistics=False) - joined(form["begun"], statistics=False)


@pytest.mark.parametrize("name", STEPS)
def test_compiled_updates_are_near_those_kernel_by_kernel(name: str, found: list[Any]) -> None:
    for results in found:
        eager, compiled = (results[name][form] for form in FORMS)
        once = [joined(form["once"], statistics=True) for form in (compiled, eager)]
        assert relative(*once) <= STATISTICS
        for when, bound in (("once", FIRST), ("last", LAST)):
            assert relative(*(way(form, when) for form in (compiled, eager))) <= bound
        assert compiled["skipped"] == eager["skipped"] == 0


@pytest.mark.parametrize("name", STEPS)
def test_all_of_it_is_compiled_and_replayed_without_a_wait(name: str, found: list[Any]) -> None:
    for results in found:
        eager, compiled = (results[name][form] for form in FORMS)
        assert (eager["launches"], eager["refused"]) == (0, [])
        assert compiled["launches"] == UPDATES - CAPTURED + 1
        assert compiled["refused"] == []
        assert compiled["waits"] == "nothing"


@pytest.mark.parametrize("name", STEPS)
def test_both_ranks_have_the_same_student(name: str, found: list[Any]) -> None:
    first, second = (results[name]["compiled"]["last"] for results in found)
    for key in first:
        if key.startswith("network."):
            assert torch.equal(first[key], second[key]), key
