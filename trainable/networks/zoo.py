"""A name → a network that can be cut into the paper's blocks (StableKD, appendix D)."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace

import torchvision.models
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from trainable.config import HeadConfig
from trainable.errors import ConfigError, input_error
from trainable.networks.blocks import Layers
from trainable.networks.heads import MARGIN, SCALE, AMSoftmax

SMALL_IMAGE = 64
"""Pictures under this many pixels get the CIFAR stem: a 3×3 convolution and no pooling."""

_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")
_MINI = re.compile(r"mini_resnet_(\d+)_(\d+)")
_LINEAR = HeadConfig()
_RESNET_CUTS = ("layer1", "layer2", "layer3", "layer4")


def build(
    name: str,
    *,
    classes: int,
    channels: int,
    image_size: int,
    path: str,
    head: HeadConfig = _LINEAR,
) -> Layers:
    """Build the network `name` with fresh weights from torch's global generator.

    `image_size` is the shorter side in pixels; `path` is the config path that gave the name, for the
    message of the ConfigError that an unknown one raises.
    """
    layers = _build_with_linear_head(name, classes, channels, image_size, path)
    return layers if head.name == "linear" else _with_am_softmax(layers, head)


def _build_with_linear_head(
    name: str, classes: int, channels: int, image_size: int, path: str
) -> Layers:
    if name in _TORCHVISION:
        return _torchvision_resnet(name, classes, channels, image_size)
    match = _MINI.fullmatch(name)
    if match is not None:
        return _mini_resnet(int(match[1]), int(match[2]), classes, channels, path)
    known = (*_TORCHVISION, "mini_resnet_10_16")
    near = difflib.get_close_matches(name, known, n=1)
    raise input_error(
        ConfigError,
        path,
        "must be a known network",
        (f"did you mean {near[0]}? " if near else "")
        + f"known are {', '.join(_TORCHVISION)} and mini_resnet_DEPTH_WIDTH",
        name,
    )


def _with_am_softmax(layers: Layers, config: HeadConfig) -> Layers:
    name, linear = layers.chain[-1]
    assert isinstance(linear, nn.Linear)
    head = AMSoftmax(
        linear.in_features,
        linear.out_features,
        MARGIN if config.margin is None else config.margin,
        SCALE if config.scale is None else config.scale,
    )
    layers.network.set_submodule(name, head)
    return replace(layers, chain=(*layers.chain[:-1], (name, head)))


def _torchvision_resnet(name: str, classes: int, channels: int, image_size: int) -> Layers:
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    network.relu = nn.ReLU()  # one in place would overwrite what a cut at bn1 has handed out
    if image_size < SMALL_IMAGE:
        network.conv1 = _conv(nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False))
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = _conv(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
    return _resnet_layers(network, ("conv1", "bn1", "relu", "maxpool"))


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


def _mini_resnet(depth: int, width: int, classes: int, channels: int, path: str) -> Layers:
    if depth < 10 or (depth - 2) % 8 or not width:
        raise input_error(
            ConfigError,
            path,
            "mini_resnet_DEPTH_WIDTH needs a depth of 8n + 2 and a width >= 1",
            "use mini_resnet_10_16, mini_resnet_18_16, …",
            f"mini_resnet_{depth}_{width}",
        )
    return _resnet_layers(MiniResNet(depth, width, classes, channels), ("conv1", "bn1", "relu"))


def _resnet_layers(network: nn.Module, stem: tuple[str, ...]) -> Layers:
    names = (*stem, *_RESNET_CUTS, "avgpool")
    chain = [(name, network.get_submodule(name)) for name in names]
    chain += [("flatten", nn.Flatten(1)), ("fc", network.get_submodule("fc"))]
    return Layers(network, tuple(chain), _RESNET_CUTS)


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
