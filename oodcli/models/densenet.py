"""Densely connected networks for small images.

References
----------
Huang, Liu, van der Maaten, Weinberger. "Densely Connected Convolutional Networks". CVPR 2017,
arXiv:1608.06993 (section 3, DenseNet-BC of table 2).
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

from oodcli.models.architecture import numbered_blocks


class BottleneckLayer(nn.Module):
    """Two times batch normalisation, ReLU and a convolution (1x1, then 3x3), appended to the input.

    Parameters
    ----------
    in_channels
        Channels of the input.
    growth
        Channels that the layer adds; its 1x1 convolution has four times this number.
    """

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, c + growth, h, w)``, with the input first; ``x`` is not changed."""
        y = self.conv1(F.relu(self.bn1(x), inplace=True))
        y = self.conv2(F.relu(self.bn2(y), inplace=True))
        return torch.cat((x, y), dim=1)


class DenseBlock(nn.Module):
    """Layers of equal resolution, under the name ``layer`` that public checkpoints use.

    Parameters
    ----------
    in_channels
        Channels of the input.
    growth
        Channels that each layer adds.
    depth
        Number of layers.
    """

    def __init__(self, in_channels: int, growth: int, *, depth: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(BottleneckLayer(in_channels + i * growth, growth) for i in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps ``(n, c, h, w)`` of the last layer, which include those of all others."""
        return self.layer(x)


class Transition(nn.Module):
    """Batch normalisation, ReLU, a 1x1 convolution to half the channels, 2x2 average pooling.

    Parameters
    ----------
    in_channels
        Channels of the input.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``(n, c // 2, h // 2, w // 2)``."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x), inplace=True)), 2)


class DenseNet(nn.Module):
    """A plain 3x3 stem, three dense blocks, a last ReLU, average pooling and a linear layer.

    Parameters
    ----------
    num_classes
        Rows of the last layer.
    depth
        Number of layers with weights, ``6 n + 4`` for ``n`` bottleneck layers per block.
    growth
        Channels that each layer adds; the stem has twice this number.

    Notes
    -----
    The pooling is over the whole feature map: the published 8 x 8 for images of 32 x 32, and the
    map of any other size. There is no dropout.
    """

    def __init__(self, num_classes: int, *, depth: int, growth: int) -> None:
        super().__init__()
        layers = (depth - 4) // 6
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.block1 = DenseBlock(channels, growth, depth=layers)
        self.trans1 = Transition(channels := channels + layers * growth)
        self.block2 = DenseBlock(channels := channels // 2, growth, depth=layers)
        self.trans2 = Transition(channels := channels + layers * growth)
        self.block3 = DenseBlock(channels := channels // 2, growth, depth=layers)
        channels += layers * growth
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, k)`` of normalised images ``(n, 3, h, w)``."""
        x = self.trans1(self.block1(self.conv1(x)))
        x = self.block3(self.trans2(self.block2(x)))
        x = F.relu(self.bn1(x), inplace=True)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (n, c)
        return self.fc(x)


def densenet_blocks(module: nn.Module) -> Mapping[str, str]:
    """Name the bottleneck layers of a :class:`DenseNet` ``block.position``, counted from 1.

    Notes
    -----
    The feature map of a layer is its output, which includes those of all earlier layers in its
    block.
    """
    return numbered_blocks(module, ("block1.layer", "block2.layer", "block3.layer"))


def build_densenet100(num_classes: int) -> DenseNet:
    """Build DenseNet-BC-100-12: 16 bottleneck layers per block, 12 channels each, 342 features."""
    return DenseNet(num_classes, depth=100, growth=12)
