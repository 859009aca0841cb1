"""Activation checkpointing: the same training to the bit, and the blocks really computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.stepping import noise, step_of, update
from trainable.compiled import Compiler
from trainable.config import DistillConfig, TrialConfig
from trainable.distill.objective import Objective, method_of
from trainable.distill.terms import LOSS
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student, build_teacher_network
from trainable.networks.norms import freeze_batchnorm
from trainable.networks.teacher import FrozenTeacher
from trainable.plan import initial_groups

MakeConfig = Callable[..., TrialConfig]
PICTURES = Pictures(10, 3, (8, 8))
STEPS = 10
ON_RANKS: dict[str, Any] = {
    "data": {"source": "digits"},
    "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "stablekd", "alpha": 0.3, "decomposition": "3/0"},
}


@pytest.fixture
def build(make_config: MakeConfig) -> Callable[[bool], BlockNetwork]:
    """The same student with and without activation checkpointing."""

    def built(recompute: bool, **sections: Any) -> BlockNetwork:
        torch.manual_seed(0)
        train = {"activation_checkpointing": recompute, **sections.pop("train", {})}
        return build_student(make_config(train=train, **sections), PICTURES)

    return built


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(network: BlockNetwork, *, compiles: bool) -> list[Tensor]:
    compiler = Compiler(4, layers="inductor")
    with compiler.at_work(4) if compiles else nullcontext():
        loss = network(torch.ones(4, 3, 8, 8)).square().sum()
    loss.backward()
    assert not compiler.is_refused
    return [p.grad for p in network.parameters() if p.grad is not None]


def test_where_a_step_is_compiled_blocks_are_computed_again_as_they_are_written(
    build: Callable[[bool], BlockNetwork],
) -> None:
    """What is compiled keeps other tensors for the backward pass than what is not, which `checkpoint` refuses."""
    expected = gradients(build(True), compiles=False)
    found = gradients(build(True), compiles=True)
    assert all(map(torch.equal, found, expected))
    assert len(found) == len(expected) > 10


def forwards(network: BlockNetwork) -> dict[str, int]:
    """Counts the forwards of every layer from now on."""
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook

    for name, module in network.network.named_modules():
        if name and not any(module.children()):
            module.register_forward_pre_hook(count(name))
    return counts


def trained(
    student: BlockNetwork,
    teacher: FrozenTeacher,
    *,
    autocast: bool = False,
    accumulate: int = 1,
    parallel: bool = False,
    frozen: Callable[[BlockNetwork], nn.Module] | None = None,
    **distill: Any,
) -> dict[str, Tensor]:
    """State after ten updates of SGD with momentum."""
    config = DistillConfig.model_validate(distill)
    k = int((config.decomposition or "1/0").split("/")[0])
    module: nn.Module = Objective(student, method_of(config, student, initial_groups(5, k))).train()
    if parallel:
        module = DistributedDataParallel(module, gradient_as_bucket_view=True)
    if frozen is not None:
        freeze_batchnorm(frozen(student))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    torch.manual_seed(3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for micro_batch in range(accumulate):
            images, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))
            waits = parallel and micro_batch < accumulate - 1
            with module.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    terms = module(images, labels, teacher(images))
                (terms[LOSS] / 8).backward()
        optimizer.step()
    return {name: value.clone() for name, value in student.state_dict().items()}


def test_what_the_head_takes_is_computed_again_too() -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    student, images = BlockNetwork(nn.Sequential(*layers), ["0"]).train(), torch.randn(8, 3, 8, 8)
    student.embed(images).square().sum().backward()
    expected = [p.grad for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    student.recompute, counts = True, forwards(student)
    student.embed(images).square().sum().backward()
    found = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(map(torch.equal, found, expected))
    assert len(found) == 4
    assert (counts["0"], counts["1"]) == (2, 2)


CASES: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "kd": {"method": "kd", "alpha": 0.3},
    "mse": {"method": "mse", "alpha": 0.3},
    "stablekd-5": {"method": "stablekd", "alpha": 0.3, "decomposition": "5/0"},
    "stablekd-2": {"method": "stablekd", "lam": 1.0, "decomposition": "2/0"},
    "bf16": {"method": "kd_mse", "alpha": 0.3, "autocast": True},
    "accumulate": {"method": "kd", "alpha": 0.3, "accumulate": 3},
    "frozen": {"method": "kd", "alpha": 0.3, "frozen": lambda s: s.network},
    "one block frozen": {"method": "kd", "alpha": 0.3, "frozen": lambda s: s.network.layer2},
}


def check_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_ten_updates_give_the_same_bits(
    case: str,
    dropout: float,
    build: Callable[[bool], BlockNetwork],
    teacher: FrozenTeacher,
) -> None:
    """Weights, running statistics and their counts: each block's batch is taken in once."""
    students = [build(recompute) for recompute in (True, False)]
    counted = forwards(students[0])
    for student in students:
        if dropout:
            student.network.get_submodule("layer2").append(nn.Dropout(dropout))
    with_it, without = (trained(student, teacher, **CASES[case]) for student in students)
    check_equal(with_it, without)
    updates = STEPS * CASES[case].get("accumulate", 1)
    assert counted["layer3.0.conv2"] == counted["bn1"] == 2 * updates
    assert with_it["network.layer2.0.bn1.num_batches_tracked"].item() == (
        0 if "frozen" in case else updates
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ten_updates_under_ddp_give_the_same_bits(
    accumulate: int,
    one_rank: None,
    build: Callable[[bool], BlockNetwork],
    teacher: FrozenTeacher,
) -> None:
    settings: dict[str, Any] = {"method": "stablekd", "alpha": 0.3, "decomposition": "3/0"}
    settings |= {"parallel": True, "accumulate": accumulate}
    with_it, without = (trained(build(on), teacher, **settings) for on in (True, False))
    check_equal(with_it, without)


def _rank(rank: int, folder: str) -> None:
    """What ten updates come to, by micro-batches and whether blocks are computed again, and forwards of a layer."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[int, dict[bool, dict[str, Tensor]]] = {}
    for accumulate in (1, 2):
        found[accumulate] = {}
        for recompute in (True, False):
            config = TrialConfig.model_validate(
                {**ON_RANKS, "train": {"activation_checkpointing": recompute}}
            )
            torch.manual_seed(0)
            student = build_student(config, PICTURES)
            teacher = FrozenTeacher(build_teacher_network(config, PICTURES))
            counted, step = forwards(student), step_of(student, config, {"lr": 0.05})
            for number in range(STEPS):
                parts = [16 // accumulate] * accumulate
                update(step, teacher, noise(100 * rank + number), parts, 0.05)
            times = torch.tensor(counted["layer3.0.conv2"])
            found[accumulate][recompute] = {**student.state_dict(), "forwards": times}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ten_updates_on_two_ranks_give_the_same_bits(tmp_path: Path) -> None:
    run_on_ranks(_rank, str(tmp_path), ranks=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for accumulate in (1, 2):
        for found in (first[accumulate], second[accumulate]):
            assert found[True].pop("forwards") == 2 * STEPS * accumulate
            assert found[False].pop("forwards") == STEPS * accumulate
            check_equal(found[True], found[False])
        mine, theirs = first[accumulate][True], second[accumulate][True]
        assert torch.equal(mine["network.fc.weight"], theirs["network.fc.weight"])
        assert not torch.equal(mine["network.bn1.running_mean"], theirs["network.bn1.running_mean"])


@pytest.mark.parametrize("norm", ["sync", "am_softmax", "group_norm", "cumulative"])
def test_ten_updates_give_the_same_bits_with_other_layers(
    norm: str, build: Callable[..., BlockNetwork], teacher: FrozenTeacher
) -> None:
    sections: dict[str, Any] = {
        "sync": {"train": {"batchnorm": {"sync": True}, "workers": 2}},
        "am_softmax": {"student": {"head": {"name": "am_softmax"}}},
        "group_norm": {"train": {"batchnorm": {"group_norm": 2}}},
    }.get(norm, {})
    students = [build(recompute, **sections) for recompute in (True, False)]
    if norm == "cumulative":
        for module in (module for student in students for module in student.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # its running statistics read the count
    with_it, without = (trained(s, teacher, method="kd", alpha=0.3) for s in students)
    check_equal(with_it, without)


@pytest.mark.parametrize("training", [True, False])
def test_without_a_backward_nothing_is_computed_twice(
    training: bool, build: Callable[[bool], BlockNetwork]
) -> None:
    student, plain = build(True).train(training), build(False).train(training)
    images, mine, theirs = torch.randn(8, 3, 8, 8), forwards(student), forwards(plain)
    with torch.no_grad():
        assert torch.equal(student(images), plain(images))
    assert mine == theirs
    check_equal(student.state_dict(), plain.state_dict())


def test_evaluation_with_gradients_keeps_its_activations(
    build: Callable[[bool], BlockNetwork],
) -> None:
    student = build(True).eval()
    counted = forwards(student)
    student(torch.randn(8, 3, 8, 8)).sum().backward()
    assert counted["layer3.0.conv2"] == 1


def test_the_blocks_inputs_are_all_that_is_kept_for_the_backward_pass(
    build: Callable[[bool], BlockNetwork],
) -> None:
    """In elements: what autograd holds after the forward of eight pictures."""

    def kept(recompute: bool) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            build(recompute)(torch.randn(8, 3, 8, 8))
        return sum(sizes.values())

    assert kept(True) == 8 * (3 * 64 + 4 * 64 + 8 * 16 + 16 * 4 + 32 * 1)
    assert kept(False) > 5 * kept(True)


def test_a_failing_recomputation_leaves_the_layers_their_buffers(
    build: Callable[[bool], BlockNetwork],
) -> None:
    """The guard holds views of these very tensors: a copy left behind would escape it."""
    student = build(True)
    loss = student(torch.randn(8, 3, 8, 8)).sum()
    own = dict(student.named_buffers())
    before = {name: buffer.clone() for name, buffer in own.items()}

    def fail(*_: object) -> None:
        raise RuntimeError("in the second forward")

    student.network.get_submodule("layer2.0.bn2").register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the second forward"):
        loss.backward()
    for name, buffer in student.named_buffers():
        assert buffer is own[name], name
        assert torch.equal(buffer, before[name]), name


def test_a_batch_that_is_not_finite_is_taken_in_once_too(
    build: Callable[[bool], BlockNetwork],
) -> None:
    """A momentum of 0 in the recomputation would turn 0·∞ into NaN."""
    states = []
    for recompute in (True, False):
        student = build(recompute)
        student(torch.full((8, 3, 8, 8), 1e38)).sum().backward()
        states.append({n: b.clone() for n, b in student.named_buffers()})
    for name, buffer in states[0].items():
        assert torch.equal(buffer.nan_to_num(), states[1][name].nan_to_num()), name


def test_a_second_backward_through_the_same_graph_recomputes_again(
    build: Callable[[bool], BlockNetwork],
) -> None:
    student = build(True)
    counted = forwards(student)
    loss = student(torch.randn(8, 3, 8, 8)).square().sum()
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    first = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(student.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert counted["layer3.0.conv2"] == 3
    check_equal(dict(student.named_buffers()), before)
