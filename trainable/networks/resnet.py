"""ResNets (He et al. 2016): torchvision's, and small ones of the same layout."""

from __future__ import annotations

import torchvision.models
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from trainable.errors import ConfigError, input_error

SMALL_IMAGE = 64
"""Pictures under this many pixels get the CIFAR stem: a 3×3 convolution and no pooling."""

CUTS = ("layer1", "layer2", "layer3", "layer4")
"""After each group of equal width, as in StableKD's appendix D."""


def build_resnet(name: str, classes: int, channels: int, side: int) -> nn.Module:
    """torchvision's `name` with fresh weights; `side` is the pictures' shorter one, in pixels."""
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if side < SMALL_IMAGE:
        network.conv1 = _conv(nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False))
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = _conv(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
    return network


def build_mini_resnet(depth: int, width: int, classes: int, channels: int, path: str) -> nn.Module:
    """`mini_resnet_DEPTH_WIDTH` with fresh weights; ConfigError, in the name of `path`, if there is none."""
    if depth < 10 or (depth - 2) % 8 or not width:
        raise input_error(
            ConfigError,
            path,
            "mini_resnet_DEPTH_WIDTH needs a depth of 8n + 2 and a width >= 1",
            "use mini_resnet_10_16, mini_resnet_18_16, …",
            f"mini_resnet_{depth}_{width}",
        )
    return MiniResNet(depth, width, classes, channels)


class MiniResNet(nn.Module):
    """A small ResNet of basic blocks for small pictures: four groups of widths W, 2W, 4W, 8W.

    Depth D = 8n + 2 has n basic blocks a group; the layout and names are those of torchvision's ResNets
    with the CIFAR stem, so that it is cut into the same five blocks.
    """

    def __init__(self, depth: int, width: int, classes: int, channels: int) -> None:
        super().__init__()
        count = (depth - 2) // 8
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _group(width, width, count, stride=1)
        self.layer2 = _group(width, 2 * width, count, stride=2)
        self.layer3 = _group(2 * width, 4 * width, count, stride=2)
        self.layer4 = _group(4 * width, 8 * width, count, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _conv(module)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures: (batch, channels, height, width) → (batch, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _group(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
        )
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(count - 1)))


def _conv(conv: nn.Conv2d) -> nn.Conv2d:
    """He initialisation by fan-out, as torchvision's ResNets have it."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
