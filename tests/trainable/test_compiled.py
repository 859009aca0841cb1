"""Functions run compiled where a step asks for it, and as they are written where that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

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


def doubled(x: Tensor) -> Tensor:
    return 2 * x


double = compilable(doubled)
TWO = torch.ones(2)


def test_a_function_runs_compiled_in_micro_batches_of_one_size(compilers: Compilers) -> None:
    compiler = Compiler(2)
    assert double(TWO).tolist() == [2.0, 2.0]
    with compiler.at_work(3):
        double(TWO)
    assert compilers.runs == 0
    for _ in range(2):
        with compiler.at_work(2):
            assert double(TWO).tolist() == [2.0, 2.0]
    with Compiler(2).at_work(2):
        double(TWO)
    double(TWO)
    assert (compilers.compiled, compilers.runs) == (1, 3)


def test_what_cannot_be_compiled_runs_as_it_is_written(
    compilers: Compilers, caplog: pytest.LogCaptureFixture
) -> None:
    compilers.error = RuntimeError("no C++ compiler\nand a long trace")
    compiler = Compiler(2)
    for _ in range(3):
        with compiler.at_work(2):
            assert double(TWO).tolist() == [2.0, 2.0]
    (line,) = [record.message for record in caplog.records]
    assert line == "the student runs as it is written, not compiled: no C++ compiler"
    compilers.error = None
    with compiler.at_work(2):
        double(TWO)
    assert compilers.runs == 0
    with Compiler(2).at_work(2):
        double(TWO)
    assert compilers.runs == 1


def test_a_functions_own_error_is_its_own(compilers: Compilers) -> None:
    @compilable
    def fails(x: Tensor) -> Tensor:
        raise ValueError(f"of {len(x)}")

    with Compiler(2).at_work(2), pytest.raises(ValueError, match="of 2"):
        fails(TWO)


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
            assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-3)
    assert made[0] > 0
    assert made[1] == made[0]
    assert not [record for record in caplog.records if record.name == compiled.__name__]


class Breaking(nn.Module):
    """Prints, which breaks a compiled graph in two."""

    def forward(self, x: Tensor) -> Tensor:
        print(end="")
        return x.relu()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, at what a block is given
def test_a_block_that_breaks_its_graph_is_still_right() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Breaking(), nn.Flatten(), nn.Linear(4 * 36, 2))
    blocks, x = BlockNetwork(network, ["1"]), torch.randn(2, 3, 8, 8)
    expected = blocks(x)
    compiler = Compiler(2)
    with compiler.at_work(2):
        torch.testing.assert_close(blocks(x), expected)
    assert not compiler.is_refused
