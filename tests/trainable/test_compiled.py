"""Functions run compiled where a step asks for it, and as they are written where that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.graph import GraphLowering

from tests.trainable.trials import MakeConfig, numbers, train, untrained_teacher
from trainable import compiled
from trainable.compiled import Compiler, compilable
from trainable.networks.blocks import BlockNetwork


class Compilers:
    """In place of torch.compile: counts what is compiled and what is run so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled = self.runs = 0
        self.error: Exception | None = None
        monkeypatch.setattr(torch, "compile", self)
        compiled._compiled.cache_clear()

    def __call__(self, function: Callable[..., Tensor], **_: Any) -> Callable[..., Tensor]:
        self.compiled += 1

        def run(*args: Any) -> Tensor:
            if self.error is not None:
                raise self.error
            self.runs += 1
            return function(*args)

        return run


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield Compilers(monkeypatch)
    compiled._compiled.cache_clear()


def compiler_of(size: int) -> Compiler:
    return Compiler(size, layers="inductor", formulas="inductor")


def doubled(x: Tensor) -> Tensor:
    return 2 * x


double = compilable(doubled)
TWO = torch.ones(2)


def test_a_function_runs_compiled_in_micro_batches_of_one_size(compilers: Compilers) -> None:
    compiler = compiler_of(2)
    assert double(TWO).tolist() == [2.0, 2.0]
    with compiler.at_work(3):
        double(TWO)
    assert compilers.runs == 0
    for _ in range(2):
        with compiler.at_work(2):
            assert double(TWO).tolist() == [2.0, 2.0]
    with compiler_of(2).at_work(2):
        double(TWO)
    double(TWO)
    assert (compilers.compiled, compilers.runs) == (1, 3)


def test_what_cannot_be_compiled_runs_as_it_is_written(
    compilers: Compilers, caplog: pytest.LogCaptureFixture
) -> None:
    compilers.error = TorchDynamoException("no C++ compiler\nand a long trace")
    compiler = compiler_of(2)
    for _ in range(3):
        with compiler.at_work(2):
            assert double(TWO).tolist() == [2.0, 2.0]
    (line,) = [record.message for record in caplog.records]
    assert line.endswith("own kernels: no C++ compiler and a long trace")
    compilers.error = None
    with compiler.at_work(2):
        double(TWO)
    assert compilers.runs == 0
    with compiler_of(2).at_work(2):
        double(TWO)
    assert compilers.runs == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("shape")])
def test_a_fault_of_what_is_compiled_is_the_trials(
    error: Exception, compilers: Compilers, caplog: pytest.LogCaptureFixture
) -> None:
    """Run again, a block would take its batch into the running statistics twice."""
    compilers.error, compiler = error, compiler_of(2)
    with compiler.at_work(2), pytest.raises(type(error)):
        double(TWO)
    assert not compiler.is_refused
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore:dynamo_pgo")  # torch's own
def test_what_cannot_be_compiled_for_the_backward_pass_is_seen_in_the_forward(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lower = GraphLowering.compile_to_module

    def broken(lowering: GraphLowering) -> Any:
        if lowering.is_backward:
            raise NotImplementedError("no kernel for this gradient")
        return lower(lowering)

    monkeypatch.setattr(GraphLowering, "compile_to_module", broken)
    compiler, x = compiler_of(2), torch.ones(2, requires_grad=True)
    with compiler.at_work(2), inductor.patch(force_disable_caches=True):
        double(x).sum().backward()
    assert compiler.is_refused
    assert "no kernel for this gradient" in caplog.text
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 2.0]


def trained(
    make_config: MakeConfig, folder: Path, *, compile: bool, **sections: Any
) -> list[dict[str, float]]:
    folder.mkdir()
    config = make_config(train={"epochs": 3, "compile": compile}, **sections)
    return numbers(train(config, folder, untrained_teacher(config, folder)))


def test_a_trial_compiles_its_students_blocks_for_its_batch_size(
    make_config: MakeConfig, tmp_path: Path, compilers: Compilers
) -> None:
    plain = trained(make_config, tmp_path / "plain", compile=False)
    assert compilers.runs == 0
    assert trained(make_config, tmp_path / "compiled", compile=True) == plain
    assert compilers.runs > 0


STABLE = {"method": "stablekd", "alpha": None, "lam": 1.0, "decomposition": "5/2"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, at what a block is given
def test_compiled_trials_train_alike_and_later_ones_find_their_kernels_made(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counters.clear()
    made: list[int] = []
    for number, distill in enumerate([STABLE, {**STABLE, "lam": 2.0, "decomposition": "3/1"}]):
        plain, own = (
            trained(make_config, tmp_path / f"{number}-{compile}", compile=compile, distill=distill)
            for compile in (False, True)
        )
        made.append(counters["stats"]["unique_graphs"])
        for one, other in zip(plain, own, strict=True):
            for name in ("train/loss", "val/loss", "grad/norm", "bn/min_var", "bn/drift"):
                assert other[name] == pytest.approx(one[name], rel=5e-3), name
    assert made[0] > 0
    assert made[1] == made[0]
    assert not [record for record in caplog.records if record.name == compiled.__name__]


class Breaking(nn.Module):
    """Breaks a compiled graph in two."""

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x.relu()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, at what a block is given
def test_a_block_that_cannot_be_compiled_whole_is_not_run_in_part() -> None:
    """Its BatchNorm takes the batch in once."""
    norm = nn.BatchNorm2d(4)
    layers = (nn.Conv2d(3, 4, 3), norm, Breaking(), nn.Flatten(), nn.Linear(4 * 36, 2))
    blocks, x = BlockNetwork(nn.Sequential(*layers), ["2"]), torch.randn(2, 3, 8, 8)
    expected = blocks(x)
    compiler = compiler_of(2)
    with compiler.at_work(2):
        torch.testing.assert_close(blocks(x), expected)
    assert compiler.is_refused
    assert int(norm.get_buffer("num_batches_tracked")) == 2
