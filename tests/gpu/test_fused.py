"""A teacher in cuDNN's fused kernels, under autocast on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.stepping import CUDA
from tests.trainable.test_fused import STATED, operations, settled
from trainable.networks.blocks import BlockNetwork
from trainable.networks.fused import distance, fused
from trainable.networks.teacher import FrozenTeacher
from trainable.networks.zoo import Pictures, build

pytestmark = pytest.mark.gpu


def teacher(name: str) -> FrozenTeacher:
    torch.manual_seed(0)
    built = build(name, Pictures(10, 3, (32, 32)), path="teacher.model")
    frozen = FrozenTeacher(BlockNetwork(settled(built.network), built.cuts)).to(CUDA)
    return frozen.to(memory_format=torch.channels_last)


def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 32, 32, generator=generator).to(CUDA)
    return images.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "joined"), [("resnet18", 17), ("resnet50", 49), ("wrn_16_2", 7)])
def test_it_is_about_as_near_to_fp32_as_autocast_is(
    name: str, joined: int, dtype: torch.dtype
) -> None:
    frozen, images = teacher(name), pictures()
    exact = frozen(images)
    with torch.autocast("cuda", dtype, cache_enabled=False):
        plain = frozen(images)
        frozen.fuse(images)
        seen = operations(frozen, images)
        found = frozen(images)
    assert seen.count("cudnn_convolution") == joined
    assert seen.count("_to_copy") == 1, "of the pictures: weights are kept in half precision"
    triples = zip(
        (*found.features, found.logits),
        (*plain.features, plain.logits),
        (*exact.features, exact.logits),
        strict=True,
    )
    for mine, theirs, true in triples:
        assert mine.dtype == theirs.dtype == dtype
        assert mine.is_contiguous(memory_format=torch.channels_last) or mine.dim() == 2
        error, usual = ((x.float() - true).norm() / true.norm() for x in (mine, theirs))
        assert error < 2 * usual
    outputs = (*found.features, found.logits)
    assert distance(outputs, (*exact.features, exact.logits)) < STATED[dtype]


def test_fp32_is_left_alone() -> None:
    frozen = teacher("resnet18")
    assert fused(frozen.blocks.features, pictures()) is None


@pytest.mark.usefixtures("deterministic")
def test_it_repeats_its_bits() -> None:
    frozen, images = teacher("resnet18"), pictures()
    with torch.autocast("cuda", torch.float16, cache_enabled=False):
        frozen.fuse(images)
        first = frozen(images)
        assert all(torch.equal(frozen(images).logits, first.logits) for _ in range(5))
