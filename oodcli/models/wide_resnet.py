"""Wide residual networks with pre-activation blocks.

References
----------
Zagoruyko, Komodakis. "Wide Residual Networks". BMVC 2016, arXiv:1605.07146.
"""

import math
from collections.abc import Mapping

import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

from oodcli.models.architecture import numbered_blocks

STEM_CHANNELS = 16


class PreActivationBlock(nn.Module):
    """Two times batch normalisation, ReLU and a 3x3 convolution; the output is the plain sum.

    Parameters
    ----------
    in_channels
        Channels of the input.
    out_channels
        Channels of the output.
    stride
        Stride of the first convolution.

    Notes
    -----
    If the number of channels changes, the shortcut is a 1x1 convolution of the normalised and
    rectified input; otherwise it is the input itself.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        # The name that public checkpoints use.
        self.convShortcut = (
            None
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps of the block, ``(n, c, h, w)``; ``x`` is not changed."""
        active = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        y = self.conv1(active)
        y = self.conv2(F.relu(self.bn2(y), inplace=True))
        y += shortcut
        return y


class Group(nn.Module):
    """Blocks of equal width, under the name ``layer`` that public checkpoints use.

    Parameters
    ----------
    in_channels
        Channels of the input.
    out_channels
        Channels of the output.
    depth
        Number of blocks.
    stride
        Stride of the first block.
    """

    def __init__(self, in_channels: int, out_channels: int, *, depth: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            PreActivationBlock(in_channels, out_channels, stride=stride),
            *(PreActivationBlock(out_channels, out_channels, stride=1) for _ in range(depth - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps ``(n, c, h, w)`` of the last block."""
        return self.layer(x)


class WideResNet(nn.Module):
    """A plain 3x3 stem, three groups of blocks, a last ReLU, average pooling and a linear layer.

    Parameters
    ----------
    num_classes
        Rows of the last layer.
    depth
        Depth of the network, ``6 n + 4`` for ``n`` blocks per group.
    widen_factor
        Factor of the 16, 32 and 64 channels of the groups.

    Notes
    -----
    The pooling is over the whole feature map: the published 8 x 8 for images of 32 x 32, and the
    map of any other size. There is no dropout, as in the networks of the FeatureNorm authors.
    """

    def __init__(self, num_classes: int, *, depth: int, widen_factor: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, padding=1, bias=False)
        self.block1 = Group(STEM_CHANNELS, widths[0], depth=blocks, stride=1)
        self.block2 = Group(widths[0], widths[1], depth=blocks, stride=2)
        self.block3 = Group(widths[1], widths[2], depth=blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, k)`` of normalised images ``(n, 3, h, w)``."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x), inplace=True)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (n, c)
        return self.fc(x)


def wide_resnet_blocks(module: nn.Module) -> Mapping[str, str]:
    """Name the residual blocks of a :class:`WideResNet` ``group.position``, counted from 1."""
    return numbered_blocks(module, ("block1.layer", "block2.layer", "block3.layer"))


def build_wrn_28_10(num_classes: int) -> WideResNet:
    """Build WRN-28-10: 4 blocks per group, 160, 320 and 640 channels."""
    return WideResNet(num_classes, depth=28, widen_factor=10)


def build_wrn_40_2(num_classes: int) -> WideResNet:
    """Build WRN-40-2: 6 blocks per group, 32, 64 and 128 channels."""
    return WideResNet(num_classes, depth=40, widen_factor=2)
