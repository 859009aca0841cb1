"""Clipping against torch's own, gradient noise, and where in an update both happen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tests.trainable.stepping import (
    PLAIN_SGD,
    gradients_at_step,
    noise,
    plain_network,
    step_of,
    update,
    weights,
)
from tests.trainable.trials import CPU, MakeConfig
from trainable.config import TrainConfig
from trainable.engine.clipping import clip_of
from trainable.engine.noise import GradientNoise
from trainable.engine.step import CLIPPED, NORM, UPDATES
from trainable.networks.blocks import BlockNetwork
from trainable.networks.teacher import FrozenTeacher
from trainable.statistics.gradients import BlockMembership, norms_of


def by_norm(network: nn.Module, bound: float) -> None:
    clip_grad_norm_(network.parameters(), bound)


def by_value(network: nn.Module, bound: float) -> None:
    clip_grad_value_(network.parameters(), bound)


def by_layer(network: nn.Module, bound: float) -> None:
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own:
            clip_grad_norm_(own, bound)


REFERENCES: dict[str, Callable[[nn.Module, float], None]] = {
    "norm": by_norm,
    "value": by_value,
    "layer": by_layer,
}


def with_gradients(network: BlockNetwork) -> BlockNetwork:
    """Of very different sizes from layer to layer, the first of them zero."""
    generator = torch.Generator().manual_seed(3)
    layers = [module for module in network.modules() if list(module.parameters(recurse=False))]
    for number, layer in enumerate(layers):
        for parameter in layer.parameters(recurse=False):
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.grad = drawn * (0.0 if not number else 10.0 ** (number % 4 - 2))
    return network


def clipped(network: BlockNetwork, kind: str, bound: float) -> float:
    """By what is tested; in the order of the step."""
    config = TrainConfig.model_validate({"clip": bound, "clip_by": kind})
    membership = BlockMembership(network.block_parameters(), student=len(network))
    clip = clip_of(config, network, membership.parameters)
    assert clip is not None
    gradients = membership.gradients()
    return float(clip(gradients, norms_of(gradients)))


@pytest.mark.parametrize("bound", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("kind", REFERENCES)
def test_gradients_are_bounded_as_by_torch(kind: str, bound: float, student: BlockNetwork) -> None:
    mine = with_gradients(student)
    theirs = with_gradients(copy.deepcopy(student))
    before = [p.grad.clone() for p in mine.parameters()]  # type: ignore[union-attr]
    REFERENCES[kind](theirs, bound)
    assert clipped(mine, kind, bound) == 1.0
    names = [name for name, _ in mine.named_parameters()]
    pairs = zip(names, mine.parameters(), theirs.parameters(), before, strict=True)
    for name, a, b, was in pairs:
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=0.0, msg=name)
        assert a.grad is not None
        if kind == "layer" and float(was.norm()) * 2 < bound:
            assert torch.equal(a.grad, was), name  # a small layer stays, whatever the others are


@pytest.mark.parametrize("kind", REFERENCES)
def test_what_is_within_its_bound_stays_bit_for_bit(kind: str, student: BlockNetwork) -> None:
    network = with_gradients(student)
    before = [p.grad.clone() for p in network.parameters()]  # type: ignore[union-attr]
    assert clipped(network, kind, 1e6) == 0.0
    for parameter, value in zip(network.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, value)


def test_without_a_bound_there_is_nothing_to_do(student: BlockNetwork) -> None:
    assert clip_of(TrainConfig(), student, list(student.parameters())) is None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("parts", [[16], [4, 4, 4, 4], [7, 9]], ids=str)
@pytest.mark.parametrize("kind", REFERENCES)
def test_an_update_clips_the_unscaled_sum_once(
    kind: str, parts: list[int], precision: str, make_config: MakeConfig
) -> None:
    """The clipped gradient of the sum: not the sum of clipped ones, nor that of scaled ones."""
    train: dict[str, Any] = {"precision": precision, "loss_scale": {"initial": 256.0}}
    teacher, batch = FrozenTeacher(plain_network(1)), noise(0)
    free = step_of(plain_network(0), make_config(train=train), PLAIN_SGD)
    whole = gradients_at_step(free)
    update(free, teacher, batch, parts, 1.0)
    full = free.gradients.flush()
    assert full[CLIPPED] == 0

    reference = plain_network(0)
    for parameter, gradient in zip(reference.parameters(), whole[0], strict=True):
        parameter.grad = gradient.clone()
    bound = {"norm": full[NORM] / 3, "layer": full[NORM] / 5, "value": 0.01}[kind]
    REFERENCES[kind](reference, bound)

    student = plain_network(0)
    config = make_config(train={**train, "clip": bound, "clip_by": kind})
    step = step_of(student, config, PLAIN_SGD)
    used, before = gradients_at_step(step), weights(student)
    update(step, teacher, batch, parts, 0.5)
    for mine, theirs in zip(used[0], reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad, rtol=1e-5, atol=1e-9)
    for (name, now), gradient in zip(weights(student).items(), used[0], strict=True):
        torch.testing.assert_close(now, before[name] - 0.5 * gradient)
    sums = step.gradients.flush()
    assert sums[CLIPPED] == 1
    assert sums[NORM] == pytest.approx(full[NORM], rel=1e-6)  # from before
    assert sums["act"] == pytest.approx(full["act"], rel=1e-6)


def test_the_clip_rate_counts_good_updates_that_were_bounded(make_config: MakeConfig) -> None:
    teacher = FrozenTeacher(plain_network(1))
    free = step_of(plain_network(0), make_config(), PLAIN_SGD)
    norms = []
    for number in range(6):
        update(free, teacher, noise(number), [16], 0.0)
        norms.append(free.gradients.flush()[NORM])
    bound = sorted(norms)[3] * 0.9999  # three of six are above
    config = make_config(train={"clip": bound, "max_skipped": 9})
    step = step_of(plain_network(0), config, PLAIN_SGD)
    for number in range(6):
        update(step, teacher, noise(number), [16], 0.0)
        images, labels = noise(number)
        update(step, teacher, (images * float("nan"), labels), [16], 0.0)
    sums = step.gradients.flush()
    assert (sums[CLIPPED], sums[UPDATES]) == (3, 6)
    assert sums[NORM] == pytest.approx(sum(norms))


# Gradient noise.


def drawn(seed: int, update_number: int, deviation: float = 1.0) -> list[Tensor]:
    tensors = [torch.zeros(50, 40), torch.zeros(7)]
    GradientNoise(deviation, seed, CPU).add(tensors, update_number)
    return tensors


def test_noise_is_a_function_of_seed_and_update() -> None:
    known = drawn(0, 5)
    generator = GradientNoise(1.0, 0, CPU)
    for number in (5, 6, 5):  # whatever was drawn before
        tensors = [torch.zeros(50, 40), torch.zeros(7)]
        generator.add(tensors, number)
        assert same(tensors, known) == (number == 5)
    assert not same(drawn(1, 5), known)
    assert not torch.equal(known[0].flatten()[:7], known[1])


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("deviation", [1e-3, 0.5])
def test_noise_has_its_deviation_and_no_mean(deviation: float) -> None:
    start = torch.linspace(-1, 1, 2000).view(50, 40)
    sums, squares, count = 0.0, 0.0, 0
    for number in range(50):
        gradient = start.clone()
        GradientNoise(deviation, 3, CPU).add([gradient], number)
        added = (gradient - start).double() / deviation
        sums, squares, count = (
            sums + float(added.sum()),
            squares + float(added.square().sum()),
            count + 2000,
        )
    # 100,000 draws: five deviations of the mean and of the variance.
    assert abs(sums / count) < 5 / math.sqrt(count)
    assert abs(squares / count - 1) < 5 * math.sqrt(2 / count)


def used_in_updates(make_config: MakeConfig, parts: list[int], **train: Any) -> list[list[Tensor]]:
    step = step_of(plain_network(0), make_config(train=train), PLAIN_SGD)
    used = gradients_at_step(step)
    for number in range(2):
        update(step, FrozenTeacher(plain_network(1)), noise(number), parts, 0.0)
    return used


@pytest.mark.parametrize("parts", [[16], [8, 8]], ids=str)
def test_noise_enters_once_an_update_with_the_seed_of_the_trial(
    parts: list[int], make_config: MakeConfig
) -> None:
    free = used_in_updates(make_config, parts)
    for seed in (0, 4):
        noisy = used_in_updates(make_config, parts, gradient_noise=0.25, seed=seed)
        for number in range(2):
            expected = [gradient.clone() for gradient in free[number]]
            GradientNoise(0.25, seed, CPU).add(expected, number)
            assert same(noisy[number], expected)


@pytest.mark.parametrize("kind", REFERENCES)
def test_noise_comes_before_clipping_and_after_the_observation(
    kind: str, make_config: MakeConfig
) -> None:
    """The gradient alone is within every bound; with the noise it is not."""
    free = used_in_updates(make_config, [16])
    reference = plain_network(0)
    for parameter, gradient in zip(reference.parameters(), free[0], strict=True):
        parameter.grad = gradient.clone()
    bound = float(torch.stack([g.norm() for g in free[0]]).norm()) * 2
    GradientNoise(bound, 0, CPU).add([p.grad for p in reference.parameters()], 0)  # type: ignore[misc]
    REFERENCES[kind](reference, bound)

    config = make_config(train={"clip": bound, "clip_by": kind, "gradient_noise": bound})
    step = step_of(plain_network(0), config, PLAIN_SGD)
    used = gradients_at_step(step)
    update(step, FrozenTeacher(plain_network(1)), noise(0), [16], 0.0)
    for mine, theirs in zip(used[0], reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad, rtol=1e-5, atol=0.0)
    sums = step.gradients.flush()
    assert sums[CLIPPED] == 1
    assert sums[NORM] == pytest.approx(bound / 2, rel=1e-5)
