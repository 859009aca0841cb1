"""ResNeXts for small pictures (Xie et al. 2017, §5.3)."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from trainable.errors import ConfigError, input_error

CUTS = ("layer1", "layer2", "layer3")
"""Blocks of equal width (StableKD, appendix D): 256 channels with the stem, then 512, then 1024."""

_STEM = 64


class ResNeXt(nn.Module):
    """ResNeXt-D, C×d, of the paper's CIFAR form: a 3×3 convolution and three stages of n = (D − 2)/9 bottlenecks.

    A bottleneck of stage s = 0, 1, 2 is 1×1 to C·d·2^s channels, 3×3 in C groups (with stride 2 where a
    stage after the first begins), 1×1 to 256·2^s, with a 1×1 convolution as shortcut where widths differ.
    Three convolutions a bottleneck, the stem and the linear layer make D = 9n + 2: 20 is n = 2 and 38 is
    n = 4, as the paper's 29 is n = 3. He initialisation by fan-out, as in the authors' code.
    """

    def __init__(
        self, depth: int, cardinality: int, base_width: int, *, classes: int, channels: int
    ) -> None:
        super().__init__()
        count, shape = (depth - 2) // 9, (cardinality, base_width)
        self.conv1 = nn.Conv2d(channels, _STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU()
        self.layer1 = _stage(_STEM, 256, count, 1, shape)
        self.layer2 = _stage(256, 512, count, 2, shape)
        self.layer3 = _stage(512, 1024, count, 2, shape)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.fc = nn.Linear(1024, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures: (batch, channels, height, width) → (batch, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.avgpool(x)))


def _stage(
    inputs: int, outputs: int, count: int, stride: int, shape: tuple[int, int]
) -> nn.Sequential:
    planes, (groups, base_width) = outputs // Bottleneck.expansion, shape
    shortcut = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )
    first = Bottleneck(inputs, planes, stride, shortcut, groups, base_width)
    rest = (
        Bottleneck(outputs, planes, groups=groups, base_width=base_width) for _ in range(count - 1)
    )
    return nn.Sequential(first, *rest)


def build_resnext(
    depth: int, cardinality: int, base_width: int, *, classes: int, channels: int, path: str
) -> ResNeXt:
    """`resnextDEPTH_CARDINALITYxWIDTHd` with fresh weights from torch's global generator.

    Raises ConfigError, in the name of the config path `path`, for a depth that is not 9n + 2.
    """
    if depth < 11 or (depth - 2) % 9 or cardinality < 1 or base_width < 1:
        raise input_error(
            ConfigError,
            path,
            "resnextDEPTH_CARDINALITYxWIDTHd needs a depth of 9n + 2, a cardinality and a width >= 1",
            "use resnext20_32x4d, resnext38_32x4d, …",
            f"resnext{depth}_{cardinality}x{base_width}d",
        )
    return ResNeXt(depth, cardinality, base_width, classes=classes, channels=channels)
