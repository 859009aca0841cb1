"""Wide ResNets for small pictures (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from trainable.errors import ConfigError, input_error

CUTS = ("group1", "group2", "relu")
"""Blocks of equal width (StableKD, appendix D): 16w channels with the stem, then 32w, then 64w.

The last BN and ReLU end the block of 64w, so that the head's block is the pooling and the linear layer
("we regard the last MLP layer as a single block"), and what is compared there is normalised and rectified
as a ResNet's last features are. A cut at `group3` leaves both to the head's block and compares the bare
residual sum, whose scale nothing bounds.
"""


class WideResNet(nn.Module):
    """WRN-d-w of table 1: a 3×3 convolution and three groups of n = (d − 4)/6 blocks of 16w, 32w, 64w channels.

    Blocks are B(3,3) without dropout; He initialisation by fan-out, as in the authors' code.
    """

    def __init__(self, depth: int, width: int, *, classes: int, channels: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.group1 = _group(16, 16 * width, count, stride=1)
        self.group2 = _group(16 * width, 32 * width, count, stride=2)
        self.group3 = _group(32 * width, 64 * width, count, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures: (batch, channels, height, width) → (batch, classes)."""
        x = self.group3(self.group2(self.group1(self.conv1(x))))
        x = self.relu(self.bn(x))
        return self.fc(self.flatten(self.avgpool(x)))


class _Block(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), pre-activation.

    Where widths differ the shortcut is a 1×1 convolution, and takes what the first BN and ReLU give.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = (
            None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        residual = self.conv2(self.bn2(self.conv1(active)).relu())
        return residual + (x if self.shortcut is None else self.shortcut(active))


def _group(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    first = _Block(inputs, outputs, stride)
    return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(count - 1)))


def build_wrn(depth: int, width: int, *, classes: int, channels: int, path: str) -> WideResNet:
    """`wrn_DEPTH_WIDTH` with fresh weights from torch's global generator.

    Raises ConfigError, in the name of the config path `path`, for a depth that is not 6n + 4.
    """
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise input_error(
            ConfigError,
            path,
            "wrn_DEPTH_WIDTH needs a depth of 6n + 4 and a width >= 1",
            "use wrn_16_2, wrn_28_10, wrn_40_4, …",
            f"wrn_{depth}_{width}",
        )
    return WideResNet(depth, width, classes=classes, channels=channels)
