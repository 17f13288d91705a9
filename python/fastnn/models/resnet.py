"""Residual networks. He, Zhang, Ren and Sun 2016, "Deep residual learning for image recognition".

Names and shapes are torchvision's, so its checkpoints load. As there, the 3x3 convolution of a bottleneck has the
stride ("ResNet v1.5"). In ``eval()`` without gradients the batch normalizations are folded into the convolutions.
"""

from collections.abc import Sequence

from fastnn import nn
from fastnn._C import Tensor
from fastnn.nn import init
from fastnn.nn.fused import ConvBN


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a block that changes the shape: a 1x1 convolution with its norm."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class _Block(nn.Module):
    """relu(branch(x) + shortcut(x)); without ``downsample`` the shortcut is x itself."""

    expansion: int  # output channels of a block over its `channels`
    downsample: nn.Sequential | None

    def __init__(self) -> None:
        super().__init__()
        self._fused_shortcut = ConvBN()

    def _shortcut(self, input: Tensor) -> Tensor:
        if self.downsample is None:
            return input
        conv, norm = self.downsample
        return self._fused_shortcut(conv, norm, input)


class BasicBlock(_Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride)
        self._fused1, self._fused2 = ConvBN(), ConvBN()

    def forward(self, input: Tensor) -> Tensor:
        x = self._fused1(self.conv1, self.bn1, input, "relu")
        return self._fused2(self.conv2, self.bn2, x, "relu", self._shortcut(input))


class Bottleneck(_Block):
    """1x1 down to ``channels``, 3x3, 1x1 up to four times as many."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, 4 * channels, 1)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = _downsample(in_channels, 4 * channels, stride)
        self._fused1, self._fused2, self._fused3 = ConvBN(), ConvBN(), ConvBN()

    def forward(self, input: Tensor) -> Tensor:
        x = self._fused1(self.conv1, self.bn1, input, "relu")
        x = self._fused2(self.conv2, self.bn2, x, "relu")
        return self._fused3(self.conv3, self.bn3, x, "relu", self._shortcut(input))


class ResNet(nn.Module):
    """(N, 3, H, W) -> (N, num_classes). ``layers``: the number of blocks of each of the four stages.

    Convolutions start normal with variance 2 / fan_out. With ``zero_init_residual`` the last normalization of every
    branch starts at 0, each block as the identity (Goyal et al. 2017).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(block, 64, 64, layers[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, layers[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, layers[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        self._fused_stem = ConvBN()
        self._reset_parameters(zero_init_residual)

    def _reset_parameters(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                if last.weight is not None:
                    init.zeros_(last.weight)

    def forward(self, input: Tensor) -> Tensor:
        x = self._fused_stem(self.conv1, self.bn1, input, "relu")
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(x)))))
        y: Tensor = self.fc(self.avgpool(x).flatten(1))
        return y


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, n_blocks: int, stride: int
) -> nn.Sequential:
    """Blocks of equal width; the first has the stride."""
    blocks = [block(in_channels, channels, stride)]
    blocks += [block(channels * block.expansion, channels) for _ in range(n_blocks - 1)]
    return nn.Sequential(*blocks)


def resnet18(num_classes: int = 1000) -> ResNet:
    """11,689,512 parameters for 1000 classes."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """21,797,672 parameters for 1000 classes."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """25,557,032 parameters for 1000 classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def resnet101(num_classes: int = 1000) -> ResNet:
    """44,549,160 parameters for 1000 classes."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes)
