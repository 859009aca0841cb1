"""Two ranks (gloo) against one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from trainable import ranks
from trainable.config import DistillConfig, OptimConfig, TrainConfig
from trainable.data.sampling import updates
from trainable.distill.kd import KD
from trainable.distill.objective import Objective
from trainable.distill.terms import LOSS, Terms
from trainable.engine.loop import wrap_for_ranks
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import SAMPLES, Step
from trainable.networks.blocks import BlockNetwork, Layers
from trainable.networks.teacher import FrozenTeacher

CPU = torch.device("cpu")
SAMPLES_IN_ALL = 43
BATCH = 16


def network(seed: int) -> BlockNetwork:
    """Two blocks without BatchNorm."""
    torch.manual_seed(seed)
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(3, 4, 3)),
        ("act", nn.Tanh()),
        ("flat", nn.Flatten()),
        ("fc", nn.Linear(4 * 6 * 6, 10)),
    ]
    sequence = nn.Sequential()
    for name, layer in layers:
        sequence.add_module(name, layer)
    return BlockNetwork(Layers(sequence, tuple(layers), ("act",)))


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(SAMPLES_IN_ALL, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 10, (SAMPLES_IN_ALL,), generator=generator)


def train_epoch(workers: int, accumulate: int) -> dict[str, object]:
    """An epoch of KD on this rank's share; every update's gradient, then weights and loss sums."""
    images, labels = pictures()
    student, teacher = network(0), FrozenTeacher(network(1))
    objective = Objective(student, KD(DistillConfig(alpha=0.5)))
    optimizer = build_optimizer(OptimConfig(lr=0.1), objective.parameters(), CPU)
    step = Step(wrap_for_ranks(objective), optimizer, TrainConfig(), CPU)
    gradients: list[list[Tensor]] = []
    sizes: list[int] = []
    for update in updates(SAMPLES_IN_ALL, BATCH, workers, accumulate, ranks.rank(), 0, 1):
        for number, indices in enumerate(update.micro_batches, start=1):
            part = torch.from_numpy(indices)
            step.accumulate(
                images[part],
                labels[part],
                teacher(images[part]),
                update_size=update.size,
                last=number == len(update.micro_batches),
            )
        gradients.append([p.grad.clone() for p in student.parameters() if p.grad is not None])
        sizes.append(update.size)
        step.finish(0.1)
    losses = step.losses.flush(over_ranks=True)
    weights = [p.detach().clone() for p in student.parameters()]
    return {"gradients": gradients, "weights": weights, "losses": losses, "sizes": sizes}


def _rank(rank: int, folder: str, accumulate: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(train_epoch(2, accumulate), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(folder: Path, accumulate: int) -> list[dict[str, object]]:
    mp.spawn(_rank, (str(folder), accumulate), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_workers_with_accumulation_have_the_gradients_of_the_large_batch(
    accumulate: int, tmp_path: Path
) -> None:
    alone = train_epoch(1, 1)
    first, second = on_two_ranks(tmp_path, accumulate)
    assert alone["sizes"] == first["sizes"] == [16, 16, 11]
    for mine, theirs in zip(first["gradients"], alone["gradients"], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a - b).abs().max() <= 1e-6
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)
    assert first["losses"][SAMPLES] == SAMPLES_IN_ALL
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)


def _skip_rank(rank: int, folder: str) -> None:
    """Rank 1 alone has a loss that is not finite, with a gradient that is."""

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    images, labels = pictures()
    student, teacher = network(0), FrozenTeacher(network(1))
    method = KD(DistillConfig(alpha=0.5))

    def broken(*inputs: Any) -> Terms:
        terms = method(*inputs)
        return {**terms, LOSS: terms[LOSS] + (float("inf") if rank else 0.0)}

    objective = Objective(student, broken)
    optimizer = build_optimizer(OptimConfig(lr=0.1), objective.parameters(), CPU)
    step = Step(wrap_for_ranks(objective), optimizer, TrainConfig(), CPU)
    before = [p.detach().clone() for p in student.parameters()]
    step.accumulate(images[:4], labels[:4], teacher(images[:4]), update_size=8, last=True)
    step.finish(0.1)
    same = all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    torch.save({"same": same, "skipped": step.flush_skipped()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_skip_an_update_together(tmp_path: Path) -> None:
    mp.spawn(_skip_rank, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert result == {"same": True, "skipped": 1.0}
