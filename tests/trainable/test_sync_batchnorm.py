"""BatchNorm over two and three ranks (gloo) against torch's own on the joined batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.trainable.norm_layers import (
    BATCHES,
    CHANNELS,
    LAYERS,
    check_close,
    check_joined,
    joined_batch,
    layer_of,
    own_share,
    results_of,
    sync,
)
from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.stepping import gradients_at_step, noise
from tests.trainable.trials import CPU
from trainable import ranks
from trainable.config import BatchNormConfig, DistillConfig, OptimConfig, TrainConfig
from trainable.distill.objective import Objective, method_of
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import Step
from trainable.networks.blocks import BlockNetwork
from trainable.networks.norms import freeze_batchnorm, with_norms
from trainable.networks.sync_batchnorm import SyncBatchNorm
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.zoo import Pictures, build
from trainable.statistics.batchnorm import Recalibration

WORLDS = (2, 3)
TYPES = {"fp64": torch.float64, "fp32": torch.float32}
BOUNDS = {"fp64": 1e-9, "fp32": 1e-6, "bf16": 2e-2}
STEPS: dict[str, dict[str, Any]] = {
    "once": {},
    "recomputed": {"recompute": True},
    "accumulated": {"accumulate": 3},
    "frozen": {"frozen": True},
}


@contextmanager
def collectives() -> Iterator[list[int]]:
    """Sizes of what is reduced."""
    found: list[int] = []
    all_reduce = dist.all_reduce
    with pytest.MonkeyPatch.context() as patch:

        def counting(tensor: Tensor, **named: Any) -> Any:
            found.append(tensor.numel())
            return all_reduce(tensor, **named)

        patch.setattr(dist, "all_reduce", counting)
        yield found


def exchanges() -> dict[str, list[int]]:
    """What a layer sends in its forward and in its backward, and one that gets no gradient to pass on."""
    layer = sync(layer_of("pictures", torch.float32))
    x, _ = joined_batch("pictures", 0, torch.float32)
    found = {}
    for name, input in (("whole", x.requires_grad_()), ("first", x.detach())):
        with collectives() as forward:
            output = layer(input)
        with collectives() as backward:
            output.sum().backward()
        found[name] = [forward, backward]
    with collectives() as found["eval"]:
        layer.eval()(x).sum().backward()
    return found


def steps_of(
    *, recompute: bool = False, accumulate: int = 1, frozen: bool = False
) -> dict[str, Any]:
    """Two updates of a whole student with this rank's share of each micro-batch of seven pictures."""
    students = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        built = build("mini_resnet_10_4", Pictures(10, 3, (8, 8)), path="student.model")
        workers = ranks.world_size() if seed == 0 else 1
        network = with_norms(built.network, BatchNormConfig(sync=True), workers=workers)
        students.append(BlockNetwork(network.double(), built.cuts))
    student, teacher = students[0], FrozenTeacher(students[1])
    student.recompute = recompute
    method = method_of(DistillConfig(method="kd_mse", alpha=0.5), student, [])
    objective = Objective(student, method).train()
    if frozen:
        freeze_batchnorm(student)
    optimizer = build_optimizer(OptimConfig(lr=0.1), objective.parameters(), CPU)
    step = Step(objective, optimizer, TrainConfig(), CPU, classes=10)
    gradients = gradients_at_step(step)
    for number in range(2):
        images, labels = noise(number, 7 * accumulate)
        parts = zip(images.double().split(7), labels.split(7), strict=True)
        for place, (x, y) in enumerate(parts, start=1):
            x, y, last = x[own_share()], y[own_share()], place == accumulate
            step.accumulate(x, y, teacher(x), update_size=len(labels), last=last)
        step.finish(0.1)
    return {"gradients": gradients, "state": student.state_dict()}


def recalibrated() -> dict[str, Tensor]:
    """Running statistics measured anew on three joined batches."""
    torch.manual_seed(0)
    network: nn.Module = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), nn.BatchNorm2d(4)).double()
    network = with_norms(network, BatchNormConfig(sync=True), workers=ranks.world_size())
    recalibration = Recalibration(network)
    with recalibration.measure():
        for number in range(BATCHES):
            recalibration.next_batch(number + 1)
            network(joined_batch("pictures", number, torch.float64)[0][own_share()])
    return dict(network.named_buffers())


def compiled(layer: nn.Module) -> nn.Module:
    """With its forward as a student's blocks have it under `train.compile`, but for Inductor."""
    layer.forward = torch.compile(  # type: ignore[method-assign]
        layer.forward, backend="aot_eager", dynamic=False, fullgraph=True
    )
    return layer


def found_here(make: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """All results of this rank; `make` gives what takes the place of torch's layer."""
    found: dict[str, Any] = {
        f"{case} {name}": results_of(make(layer_of(case, kind)), case, kind)
        for case in LAYERS
        for name, kind in TYPES.items()
    }
    last = {"channels_last": True}
    found["last fp32"] = results_of(
        make(layer_of("pictures", torch.float32)), "pictures", torch.float32, **last
    )
    found["half bf16"] = results_of(
        make(layer_of("pictures", torch.float32)), "pictures", torch.float32, half=torch.bfloat16
    )
    found["compiled fp32"] = results_of(
        compiled(make(layer_of("pictures", torch.float32))), "pictures", torch.float32
    )
    found |= {name: steps_of(**settings) for name, settings in STEPS.items()}
    found["recalibrated"] = recalibrated()
    return found


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank < world:
            store = f"file://{folder}/{world}.store"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
            found = found_here(sync) | {"exchanges": exchanges()}
            torch.save(found, f"{folder}/{world}-{rank}.pt")
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """One spawn for all tests; by world and rank."""
    folder = tmp_path_factory.mktemp("sync")
    run_on_ranks(_rank, str(folder), ranks=max(WORLDS))
    return {world: [read(folder / f"{world}-{r}.pt") for r in range(world)] for world in WORLDS}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """torch's layers on the joined batch."""
    return found_here(lambda layer: layer)


OTHERS = ("last fp32", "half bf16", "compiled fp32")
CASES = [*(f"{case} {kind}" for case in LAYERS for kind in TYPES), *OTHERS]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_together_are_batchnorm_of_the_joined_batch(
    world: int,
    case: str,
    on_ranks: dict[int, list[dict[str, Any]]],
    alone: dict[str, Any],
) -> None:
    found = [results[case] for results in on_ranks[world]]
    check_joined(found, alone[case], BOUNDS[case.rpartition(" ")[2]])


@pytest.mark.parametrize("world", WORLDS)
def test_a_layer_sends_its_statistics_once_and_the_sums_of_its_gradient_once(
    world: int, on_ranks: dict[int, list[dict[str, Any]]]
) -> None:
    forward, backward = [world * (2 * CHANNELS + 1)], [2 * CHANNELS]
    for results in on_ranks[world]:
        found = results["exchanges"]
        assert found == {"whole": [forward, backward], "first": [forward, []], "eval": []}


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("world", WORLDS)
def test_updates_of_a_student_are_those_of_one_rank(
    world: int,
    case: str,
    on_ranks: dict[int, list[dict[str, Any]]],
    alone: dict[str, Any],
) -> None:
    """Logits and features enter the loss in fp32, whatever the student's type."""
    found, expected = [results[case] for results in on_ranks[world]], alone[case]
    for each in found:
        for mine, theirs in zip(each["gradients"], expected["gradients"], strict=True):
            for a, b in zip(mine, theirs, strict=True):
                check_close(a, b, 1e-6)
        for name, value in expected["state"].items():
            check_close(each["state"][name], value, 1e-6)
            assert torch.equal(each["state"][name], found[0]["state"][name]), name


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_computed_again_in_the_backward_pass_gives_the_same_bits(
    world: int, on_ranks: dict[int, list[dict[str, Any]]]
) -> None:
    for results in on_ranks[world]:
        once, again = results["once"], results["recomputed"]
        for name, value in once["state"].items():
            assert torch.equal(again["state"][name], value), name


@pytest.mark.parametrize("world", WORLDS)
def test_recalibration_measures_the_joined_batches(
    world: int, on_ranks: dict[int, list[dict[str, Any]]], alone: dict[str, Any]
) -> None:
    for results in on_ranks[world]:
        for name, value in alone["recalibrated"].items():
            check_close(results["recalibrated"][name], value, 1e-9)


def test_on_one_rank_it_is_batchnorm_to_the_bit() -> None:
    x, gradient = joined_batch("pictures", 0, torch.float32)
    found = []
    for layer in (layer_of("pictures", torch.float32), sync(layer_of("pictures", torch.float32))):
        x.grad = None
        output = layer(x.requires_grad_())
        output.backward(gradient)
        found.append([output.detach(), x.grad, *layer.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert type(layer) is SyncBatchNorm


def test_a_single_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, channels, …\), got \(3,\)"):
        SyncBatchNorm(3)(torch.zeros(3))
