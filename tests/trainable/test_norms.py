"""The student's normalisation layers as the config has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainable.config import BatchNormConfig, TrialConfig
from trainable.errors import ConfigError
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student, build_teacher_network
from trainable.networks.norms import freeze_batchnorm, group_count, with_norms
from trainable.networks.sync_batchnorm import SyncBatchNorm
from trainable.networks.zoo import build

MakeConfig = Callable[..., TrialConfig]
PICTURES = Pictures(10, 3, (16, 16))


def network_of(name: str = "mini_resnet_18_6", workers: int = 1, **config: Any) -> BlockNetwork:
    torch.manual_seed(0)
    built = build(name, PICTURES, path="student.model")
    norms = BatchNormConfig.model_validate(config)
    return BlockNetwork(with_norms(built.network, norms, workers=workers), built.cuts)


def in_blocks(network: BlockNetwork, kind: type[nn.Module]) -> list[nn.Module]:
    return [
        module
        for _, modules in network.block_modules()
        for layer in modules
        for module in layer.modules()
        if isinstance(module, kind)
    ]


def of_kind(network: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    return (module for module in network.modules() if isinstance(module, kind))


@pytest.mark.parametrize(
    ("channels", "groups", "expected"),
    [
        (64, 32, 32),
        (48, 32, 24),
        (12, 8, 6),
        (7, 4, 1),
        (4, 32, 2),
        (30, 1, 1),
        (32, 32, 16),
        (1, 4, 1),
    ],
)
def test_groups_are_the_most_that_divide_the_channels(
    channels: int, groups: int, expected: int
) -> None:
    assert group_count(channels, groups) == expected


@pytest.mark.parametrize("name", ["mini_resnet_18_6", "resnet18", "resnet50"])
def test_group_norm_takes_the_place_of_every_batchnorm(name: str) -> None:
    before, network = network_of(name), network_of(name, group_norm=4)
    assert not list(of_kind(network, _BatchNorm))
    channels = [module.num_features for module in of_kind(before, _BatchNorm)]
    norms = list(of_kind(network, nn.GroupNorm))
    assert [norm.num_channels for norm in norms] == channels
    assert [norm.num_groups for norm in norms] == [group_count(c, 4) for c in channels]
    assert all(norm.affine and norm.eps == 1e-5 for norm in norms)


def test_the_blocks_are_views_of_what_was_put_in() -> None:
    network = network_of(group_norm=4)
    assert not in_blocks(network, _BatchNorm)
    assert set(map(id, in_blocks(network, nn.GroupNorm))) == set(
        map(id, of_kind(network, nn.GroupNorm))
    )
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(images), network.network(images))
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_a_student_with_group_norm_learns_and_loads(make_config: MakeConfig) -> None:
    config = make_config(train={"batchnorm": {"group_norm": 2}})
    student, other = build_student(config, PICTURES), build_student(config, PICTURES)
    other.load_state_dict(student.state_dict())
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(student(images), other(images))
    student(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_group_norm_draws_no_random_number_and_keeps_all_weights() -> None:
    before, state = network_of(), torch.get_rng_state()
    network = network_of(group_norm=4)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = before.state_dict()
    assert all(torch.equal(v, theirs[name]) for name, v in network.state_dict().items())
    assert set(theirs) - set(network.state_dict()) == {name for name, _ in before.named_buffers()}


def test_group_norm_starts_from_the_networks_own_affine_weights() -> None:
    """A network may start with γ = 0 at the end of its residual branches (Goyal et al. 2017, §5.1)."""
    network = build("mini_resnet_10_4", PICTURES, path="student.model").network
    nn.init.zeros_(network.layer1[0].bn2.weight)
    network = with_norms(network, BatchNormConfig(group_norm=2), workers=1)
    assert isinstance(network.layer1[0].bn2, nn.GroupNorm)
    assert network.layer1[0].bn2.weight.abs().sum() == 0


@pytest.mark.parametrize("sync", [False, True])
def test_momentum_and_eps_reach_every_batchnorm(sync: bool) -> None:
    network = network_of(workers=2, sync=sync, momentum=0.03, eps=1e-3)
    layers = in_blocks(network, _BatchNorm)
    assert len(layers) == 20
    assert {(layer.momentum, layer.eps) for layer in layers} == {(0.03, 1e-3)}
    assert {type(layer) for layer in layers} == {SyncBatchNorm if sync else nn.BatchNorm2d}


def test_what_is_not_set_stays_the_layers_own() -> None:
    network = build("mini_resnet_10_4", PICTURES, path="student.model").network
    network.bn1.momentum, network.bn1.eps = 0.01, 1e-3
    network = with_norms(network, BatchNormConfig(eps=0.5), workers=1)
    assert (network.bn1.momentum, network.bn1.eps) == (0.01, 0.5)
    network = with_norms(network, BatchNormConfig(momentum=0.5), workers=1)
    assert (network.bn1.momentum, network.layer1[0].bn1.momentum) == (0.5, 0.5)
    assert network.layer1[0].bn1.eps == 0.5


@pytest.mark.parametrize(
    ("norms", "workers", "path"),
    [({"group_norm": 8}, 1, "group_norm"), ({"sync": True}, 2, "sync")],
)
def test_a_layer_that_does_more_than_batchnorm_is_not_replaced(
    norms: dict[str, Any], workers: int, path: str
) -> None:
    """timm's BatchNormAct2d holds the activation, which a replacement would drop without a word."""
    with torch.device("meta"):
        network = build("timm:efficientnet_lite0", PICTURES, path="student.model").network
    config = BatchNormConfig.model_validate(norms)
    with pytest.raises(ConfigError, match=rf"train\.batchnorm\.{path}: .*bn1 is a BatchNormAct2d"):
        with_norms(network, config, workers=workers)
    with_norms(network, BatchNormConfig(momentum=0.5, sync=True), workers=1)


def test_one_worker_has_nothing_to_synchronise() -> None:
    assert not list(of_kind(network_of(workers=1, sync=True), SyncBatchNorm))


def test_sync_batchnorm_reaches_the_blocks() -> None:
    network = network_of("resnet18", workers=2, sync=True)
    layers = in_blocks(network, _BatchNorm)
    assert len(layers) == 20
    assert all(isinstance(layer, SyncBatchNorm) for layer in layers)
    assert {id(p) for _, ps in network.block_parameters() for p in ps} == {
        id(p) for p in network.parameters()
    }


def test_sync_batchnorm_draws_no_random_number_and_keeps_all_weights() -> None:
    before, state = network_of("resnet18"), torch.get_rng_state()
    network = network_of("resnet18", workers=2, sync=True)
    assert torch.equal(torch.get_rng_state(), state)
    theirs, mine = before.state_dict(), network.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(v, theirs[name]) for name, v in mine.items())


@pytest.mark.parametrize("norms", [{"group_norm": 2}, {"sync": True}], ids=str)
def test_a_layer_that_stands_in_two_places_stays_one(norms: dict[str, Any]) -> None:
    norm = nn.BatchNorm2d(4)
    network = nn.Sequential(norm, nn.Sequential(nn.ReLU(), norm))
    network = with_norms(network, BatchNormConfig.model_validate(norms), workers=2)
    assert network[0] is network[1][1]
    assert type(network[0]) is not nn.BatchNorm2d


def test_sync_batchnorm_has_the_settings_of_the_layer_before() -> None:
    old = nn.BatchNorm1d(3, eps=0.5, momentum=None, affine=False, track_running_stats=False).eval()
    network = with_norms(nn.Sequential(old), BatchNormConfig(sync=True), workers=2)
    new = network[0]
    assert isinstance(new, SyncBatchNorm)
    assert (new.num_features, new.eps, new.momentum) == (3, 0.5, None)
    assert (new.affine, new.track_running_stats, new.training) == (False, False, False)
    assert not new.state_dict()


def test_the_teacher_keeps_the_norms_that_it_was_trained_with(make_config: MakeConfig) -> None:
    for batchnorm in ({"group_norm": 2}, {"momentum": 0.5, "eps": 0.5}):
        config = make_config(train={"batchnorm": batchnorm})
        layers = list(of_kind(build_teacher_network(config, PICTURES), _BatchNorm))
        assert {(layer.momentum, layer.eps) for layer in layers} == {(0.1, 1e-5)}


def test_frozen_batchnorm_keeps_its_statistics_and_still_learns() -> None:
    network = network_of()
    network(torch.randn(8, 3, 16, 16) + 1)  # statistics other than 0 and 1
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    images = torch.randn(4, 3, 16, 16)
    freeze_batchnorm(network.train())
    logits = network(images)
    logits.square().sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    for layer in of_kind(network, _BatchNorm):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0
        assert layer.bias.grad.abs().sum() > 0
    assert network.training
    assert torch.equal(logits, network.eval()(images))
    network.train()(images)
    assert any(not torch.equal(b, before[name]) for name, b in network.named_buffers())
