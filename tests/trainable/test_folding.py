"""Which BatchNorms go into convolutions, and that nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.trainable.exports import keep, trial
from trainable.config import TrialConfig
from trainable.export.trained import load_trained
from trainable.networks.folding import Statistics, fold_layers, foldable, merged

HERE = __name__


class Shared(nn.Module):
    """A convolution that is called twice, and one whose output is taken twice: their BatchNorms stay."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.twice = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(in_channels)
        self.split = nn.Conv2d(in_channels, in_channels, 1)
        self.third = nn.BatchNorm2d(in_channels)
        self.last = nn.Conv2d(in_channels, 4, 1)
        self.fourth = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.twice(self.first(self.twice(x))))
        x = self.split(x)
        x = self.fourth(self.last(self.third(x) + x))
        return self.fc(x.mean((2, 3)))


class Scaled(nn.Conv2d):
    """Somebody's convolution, which gives its output another scale."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Unusual(Shared):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.last = Scaled(in_channels, 4, 1)


def found(config: TrialConfig, folder: Path) -> list[tuple[str, str]]:
    trained = load_trained(config, keep(config, folder / "kept.safetensors"))
    return list(foldable(trained.student, torch.zeros(2, 3, *trained.data.image_size)))


@pytest.mark.parametrize(
    ("model", "folded"),
    [("mini_resnet_10_2", 12), ("wrn_10_1", 3), ("vit_t8", 0), (f"{HERE}:Unusual", 0)],
)
def test_how_many_are_folded(model: str, folded: int, tmp_path: Path) -> None:
    """Half of a wide ResNet's BatchNorms stand before convolutions."""
    assert len(found(trial(model), tmp_path)) == folded


def test_what_is_used_twice_stays(tmp_path: Path) -> None:
    assert found(trial(f"{HERE}:Shared"), tmp_path) == [("last", "fourth")]


def test_the_rest_of_the_weights_stays_as_it_is(tmp_path: Path) -> None:
    config = trial(f"{HERE}:Shared")
    network = load_trained(config, keep(config, tmp_path / "kept.safetensors")).student.network
    before = network.state_dict()
    after = fold_layers(network, [("last", "fourth")])
    gone = {name for name in before if name.startswith("fourth.")}
    assert set(after) == set(before) - gone
    assert all(torch.equal(after[n], before[n]) for n in after if not n.startswith("last."))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_merged_is_both_layers(bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, bias=bias).double().eval()
    norm = nn.BatchNorm2d(4, affine=affine).double().eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 2)
    statistics = Statistics(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    weight, shift = merged(convolution.weight, convolution.bias, statistics)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(
        nn.functional.conv2d(images, weight, shift),
        norm(convolution(images)),
        rtol=1e-12,
        atol=1e-12,
    )
