"""BatchNorm's channels: variances, scales, and those that say nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainable import records
from trainable.networks.blocks import BlockNetwork
from trainable.statistics.channels import Silence, channel_state


def test_state_finds_variances_dead_channels_and_scales() -> None:
    first, second = nn.BatchNorm2d(4), nn.BatchNorm2d(3, affine=False)
    first.running_var[:] = torch.tensor([1.0, 0.0, 0.5, 1e-13])
    second.running_var[:] = torch.tensor([4.0, 1.0, 0.25])
    with torch.no_grad():
        first.weight[:] = torch.tensor([2.0, 0.0, -3.0, 1e-4])
    whole, layers = channel_state(nn.Sequential(first, second), {"1": torch.tensor([False] * 3)})
    scales = first.weight.double().abs() / (first.running_var.double() + first.eps).sqrt()
    assert layers["0"] == pytest.approx(
        {
            records.BN_MIN_VAR: 0.0,
            records.BN_DEAD_CHANNELS: 2,
            records.BN_DEAD_SHARE: 0.5,
            records.BN_MIN_SCALE: 0.0,
            records.BN_MAX_SCALE: scales.max().item(),
        },
        rel=1e-5,
    )
    unweighted = 1 / (second.running_var.double() + second.eps).sqrt()
    assert layers["1"][records.BN_MAX_SCALE] == pytest.approx(unweighted.max().item(), rel=1e-5)
    assert layers["1"][records.BN_MIN_SCALE] == pytest.approx(unweighted.min().item(), rel=1e-5)
    assert whole[records.BN_DEAD_CHANNELS] == 2
    assert whole[records.BN_DEAD_SHARE] == pytest.approx(2 / 7)
    assert whole[records.BN_MAX_SCALE] == layers["0"][records.BN_MAX_SCALE]


def test_a_network_without_batchnorm_has_no_state() -> None:
    assert channel_state(nn.Linear(2, 2), {}) == ({}, {})


class Functional(nn.Module):
    """ReLU by module, by function, in place, and after an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.by_module, self.by_function, self.in_place, self.added = (
            nn.BatchNorm1d(3) for _ in range(4)
        )
        self.capped, self.hard, self.smooth = (nn.BatchNorm1d(3) for _ in range(3))
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu(self.by_module(x))
        b = torch.relu(input=self.by_function(x))
        c = self.in_place(x).relu_() + self.relu6(self.capped(x)) + F.hardswish(self.hard(x))
        return a + b + c + torch.relu(self.added(x) + 5) + F.gelu(self.smooth(x))


def test_a_channel_that_no_picture_gets_through_is_silent() -> None:
    torch.manual_seed(0)
    network = Functional().eval()
    for layer in network.children():
        if isinstance(layer, nn.BatchNorm1d):
            layer.bias.data[1] = -100.0
    network.hard.bias.data[0] = -1.5  # above −3 for most pictures
    network.by_function.bias.data[2] = -2.0  # only pictures beyond two deviations get through
    silence = Silence(network)
    with silence.watch(), torch.no_grad():
        network(torch.randn(50, 3).clamp(-1.9, 1.9))
        network(torch.tensor([[0.0, 0.0, 3.0]]))
    only = [False, True, False]
    found = {name: channels.tolist() for name, channels in silence.channels().items()}
    watched = ("by_module", "by_function", "in_place", "capped", "hard")
    assert found == dict.fromkeys(watched, only)
    _, layers = channel_state(network, silence.channels())
    assert layers["by_module"][records.BN_DEAD_CHANNELS] == 1
    assert layers["added"][records.BN_DEAD_CHANNELS] == 0


def test_a_rank_without_pictures_is_watched_like_the_others(student: BlockNetwork) -> None:
    student.eval()
    silence = Silence(student.network)
    with silence.watch(), torch.no_grad():
        assert student(torch.zeros(0, 3, 8, 8)).shape == (0, 10)
    assert len(silence.channels()) == 5
    assert all(channels.all() for channels in silence.channels().values())


def test_watching_changes_no_output_and_leaves_nothing_behind(student: BlockNetwork) -> None:
    student.eval()
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = student(x)
        silence = Silence(student.network)
        with silence.watch():
            assert torch.equal(student(x), expected)
        watched = silence.channels()
        student(torch.full_like(x, 1e3))
    assert all(not module._forward_hooks for module in student.modules())
    # The blocks' second layers are added to something first, in place.
    assert list(watched) == ["bn1", *(f"layer{number}.0.bn1" for number in (1, 2, 3, 4))]
    assert silence.channels().keys() == watched.keys()
    assert all(torch.equal(silence.channels()[name], watched[name]) for name in watched)
