"""Two ranks (gloo) against one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.stepping import gradients_at_step, noise, plain_network
from tests.trainable.trials import CPU
from trainable import ranks, records
from trainable.config import DistillConfig, OptimConfig, TrainConfig
from trainable.data.loaders import MappedLoader
from trainable.data.sampling import epoch_order, updates
from trainable.data.split import Split
from trainable.distill.objective import Objective, method_of
from trainable.distill.terms import LOSS, Terms
from trainable.engine.evaluate import Evaluator
from trainable.engine.noise import GradientNoise
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import NORM, SAMPLES, Step
from trainable.engine.summary import Summary, validation_summary
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher

SAMPLES_IN_ALL, BATCH = 43, 16
ACCUMULATE = (1, 2, 3, 4)
METHODS = ("kd", "mse")
VALIDATED = 40
"""Pictures, of which rank 0 sees every other one, and rank 1 those between."""
NOISE = {"gradient_noise": 0.1, "clip": 0.2, "seed": 3}


@contextmanager
def exchanged() -> Iterator[list[None]]:
    """Grows by one with every bucket of gradients that ranks exchange."""
    found: list[None] = []
    begin = ranks.begin_sum_over_ranks

    def counting(tensors: Sequence[Tensor]) -> Any:
        found.append(None)
        return begin(tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "begin_sum_over_ranks", counting)
        yield found


def train_epoch(workers: int, accumulate: int, method: str, **train: Any) -> dict[str, Any]:
    """An epoch on this rank's share; every update's gradient, then weights and loss sums."""
    images, labels = noise(5, SAMPLES_IN_ALL)
    student, teacher = plain_network(0), FrozenTeacher(plain_network(1))
    distill = DistillConfig.model_validate({"method": method, "alpha": 0.5})
    objective = Objective(student, method_of(distill, student, []))
    optimizer = build_optimizer(OptimConfig(lr=0.1), objective.parameters(), CPU)
    step = Step(
        objective,
        optimizer,
        TrainConfig.model_validate({"observe_every": 1, **train}),
        CPU,
        classes=10,
    )
    gradients = gradients_at_step(step)
    sizes: list[int] = []
    rounds: list[list[int]] = []
    order = epoch_order(SAMPLES_IN_ALL, 0, 1)
    for update in updates(order, BATCH, workers, accumulate, ranks.rank()):
        rounds.append([])
        for number, indices in enumerate(update.micro_batches, start=1):
            part = torch.from_numpy(indices)
            with exchanged() as counted:
                step.accumulate(
                    images[part],
                    labels[part],
                    teacher(images[part]),
                    update_size=update.size,
                    last=number == len(update.micro_batches),
                )
            rounds[-1].append(len(counted))
        sizes.append(update.size)
        step.finish(0.1)
    return {
        "gradients": gradients,
        "weights": [p.detach().clone() for p in student.parameters()],
        "losses": step.losses.flush(over_ranks=True),
        "norm": step.gradients.flush()[NORM],
        "measures": asdict(step.observed.flush()),
        "sizes": sizes,
        "rounds": rounds,
    }


def skip_one() -> dict[str, Any]:
    """Rank 1 alone has a loss that is not finite, with a gradient that is."""
    images, labels = noise(5)
    student, teacher = plain_network(0), FrozenTeacher(plain_network(1))
    method = method_of(DistillConfig(alpha=0.5), student, [])

    def broken(*inputs: Any) -> Terms:
        terms = method(*inputs)
        return {**terms, LOSS: terms[LOSS] + (float("inf") if ranks.rank() else 0.0)}

    settings = {"precision": "fp16", "loss_scale": {"initial": 64.0}}
    train = TrainConfig.model_validate(settings)
    objective = Objective(student, broken)
    optimizer = build_optimizer(OptimConfig(lr=0.1), objective.parameters(), CPU)
    step = Step(objective, optimizer, train, CPU, classes=10)
    before = [p.detach().clone() for p in student.parameters()]
    step.accumulate(images[:4], labels[:4], teacher(images[:4]), update_size=8, last=True)
    step.finish(0.1)
    same = all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    return {
        "same": same,
        "skipped": dict(step.health.flush().by_place),
        "scale": step.precision.scaler.get_scale(),
    }


def pictures() -> Tensor:
    """Uint8: those of rank 0 dark with a few white pixels, those of rank 1 of all greys."""
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(VALIDATED, 3, 8, 8, generator=generator)
    found[::2] = (found[::2] > 0.95).float()
    return (255 * found).to(torch.uint8)


def validated() -> Summary:
    """Of a student whose first BatchNorm is further off on rank 1, and whose second on rank 0."""
    images, rows = pictures().numpy(), np.arange(VALIDATED)
    split = Split(rows % 10, rows, (3, 8, 8), images, None)
    evaluator = Evaluator(MappedLoader(split), VALIDATED, Tensor.float, CPU)
    network = nn.Sequential(
        nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 64, 10)
    )
    network[0].running_var[:] = 100.0
    network[2].running_mean[:] = 1.0
    return validation_summary(evaluator, BlockNetwork(network, ("2",)), watch_batch_statistics=True)


def drifts_of(rank: int) -> list[float]:
    """Of the first layer and of the second, on one rank's pictures."""
    seen, eps = pictures()[rank::2].double(), nn.BatchNorm2d(3).eps
    mean, variance = seen.mean((0, 2, 3), True), seen.var((0, 2, 3), unbiased=False, keepdim=True)
    second = ((seen - mean) / (variance + eps).sqrt()).relu().mean((0, 2, 3))
    first = mean.abs().mean() / (100 + eps) ** 0.5
    return [first.item(), (1 - second).abs().mean().item() / (1 + eps) ** 0.5]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {
        f"{method} {accumulate}": train_epoch(2, accumulate, method)
        for method in METHODS
        for accumulate in ACCUMULATE
    }
    results["noise"] = train_epoch(2, 2, "kd", **NOISE)
    results["skip"] = skip_one()
    results["validated"] = asdict(validated())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One spawn for all tests; by rank and what was done."""
    folder = tmp_path_factory.mktemp("ranks")
    run_on_ranks(_rank, str(folder), ranks=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("accumulate", ACCUMULATE)
@pytest.mark.parametrize("method", METHODS)
def test_two_workers_with_accumulation_have_the_gradients_of_the_joined_batch(
    method: str, accumulate: int, on_ranks: list[dict[str, Any]]
) -> None:
    alone = train_epoch(1, 1, method)
    first, second = (results[f"{method} {accumulate}"] for results in on_ranks)
    assert alone["sizes"] == first["sizes"] == [16, 16, 11]
    for mine, theirs in zip(first["gradients"], alone["gradients"], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a - b).abs().max() <= 1e-6
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)
    assert first["losses"][SAMPLES] == SAMPLES_IN_ALL
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert first["norm"] == second["norm"] == pytest.approx(alone["norm"], rel=1e-5)
    assert first["measures"] == second["measures"]
    for kind in ("layers", "blocks"):
        for name, found in first["measures"][kind].items():
            expected = alone["measures"][kind][name]
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-8), name
    assert first["measures"]["whole"] == pytest.approx(alone["measures"]["whole"], rel=1e-5)


@pytest.mark.parametrize("accumulate", ACCUMULATE)
def test_ranks_exchange_gradients_in_one_round_an_update(
    accumulate: int, on_ranks: list[dict[str, Any]]
) -> None:
    """With four micro-batches, a quarter of the rounds; the small network's gradients are one bucket."""
    for results in on_ranks:
        *whole, tail = results[f"kd {accumulate}"]["rounds"]
        assert whole == [[0] * (accumulate - 1) + [1]] * 2
        assert tail == [0] * (len(tail) - 1) + [1]


def test_ranks_add_the_same_noise(on_ranks: list[dict[str, Any]]) -> None:
    first, second = (results["noise"] for results in on_ranks)
    for mine, theirs in zip(first["gradients"], second["gradients"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    clean = train_epoch(1, 1, "kd")["gradients"][0]
    GradientNoise(0.1, 3, CPU).add(clean, 0)
    factor = 0.2 / float(torch.stack([g.norm() for g in clean]).norm())
    assert factor < 1
    for noisy, expected in zip(first["gradients"][0], clean, strict=True):
        assert (noisy - factor * expected).abs().max() <= 1e-6


def test_ranks_skip_an_update_and_halve_the_scale_together(on_ranks: list[dict[str, Any]]) -> None:
    for results in on_ranks:
        assert results["skip"] == {"same": True, "skipped": {"loss": 1}, "scale": 32}


def test_drift_is_that_of_the_rank_where_it_is_largest(on_ranks: list[dict[str, Any]]) -> None:
    (first, second), (first_too, second_too) = drifts_of(0), drifts_of(1)
    assert first_too > 2 * first
    assert second > 1.2 * second_too
    whole = max(first + second, first_too + second_too) / 2
    for results in on_ranks:
        metrics, layers = results["validated"]["metrics"], results["validated"]["layers"]
        assert metrics[records.BN_DRIFT] == pytest.approx(whole, rel=1e-5)
        assert metrics[records.BN_DRIFT_MAX] == pytest.approx(first_too, rel=1e-5)
        assert layers["0"][records.BN_DRIFT] == pytest.approx(first_too, rel=1e-5)
        assert layers["2"][records.BN_DRIFT] == pytest.approx(second, rel=1e-5)
