"""Residual networks for small images.

References
----------
He, Zhang, Ren, Sun. "Deep Residual Learning for Image Recognition". CVPR 2016, arXiv:1512.03385
(section 4.2 for the networks of three stages).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

from oodcli.models.architecture import Within, numbered_blocks


def _conv3x3(
    in_channels: int, out_channels: int, *, stride: int = 1, padding: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=padding, bias=False)


class ProjectionShortcut(nn.Sequential):
    """A 1x1 convolution and batch normalisation, for blocks that change the shape (option B).

    Parameters
    ----------
    in_channels
        Channels of the input.
    out_channels
        Channels of the output.
    stride
        Stride in both directions.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )


class PaddingShortcut(nn.Module):
    """Every ``stride``-th position, and zeros for the new channels (option A); no weights.

    Parameters
    ----------
    in_channels
        Channels of the input.
    out_channels
        Channels of the output; half of the new ones come before the old ones, half after.
    stride
        Stride in both directions.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.channels = (before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shortcut of maps ``(n, c, h, w)``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; its output is the rectified sum.

    Parameters
    ----------
    in_channels
        Channels of the input.
    out_channels
        Channels of the output.
    stride
        Stride of the first convolution and of the shortcut.
    shortcut
        Type of the shortcut of a block that changes the shape; otherwise it is the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        shortcut: type[ProjectionShortcut] | type[PaddingShortcut],
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same else shortcut(in_channels, out_channels, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps of the block, ``(n, c, h, w)``; ``x`` is not changed."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks, global average pooling and a linear layer.

    Parameters
    ----------
    num_classes
        Rows of the last layer.
    depths
        Number of blocks of each stage.
    width
        Channels of the first stage; each further stage doubles them and halves the resolution.
    stem_padding
        Padding of the first convolution in pixels.
    shortcut
        Type of the shortcut of blocks that change the shape.
    """

    def __init__(
        self,
        num_classes: int,
        depths: Sequence[int],
        *,
        width: int,
        stem_padding: int = 1,
        shortcut: type[ProjectionShortcut] | type[PaddingShortcut],
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, width, padding=stem_padding)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages: list[str] = []
        channels = width
        for number, depth in enumerate(depths):
            blocks = []
            for position in range(depth):
                stride = 2 if number > 0 and position == 0 else 1
                wanted = width * 2**number
                blocks.append(BasicBlock(channels, wanted, stride=stride, shortcut=shortcut))
                channels = wanted
            self.stages.append(f"layer{number + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, k)`` of normalised images ``(n, 3, h, w)``."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (n, c)
        return self.fc(x)


def resnet_blocks(module: nn.Module) -> Mapping[str, str]:
    """Name the residual blocks of a :class:`ResNet` ``stage.position``, counted from 1."""
    stages = [name for name, _ in module.named_children() if name.startswith("layer")]
    return numbered_blocks(module, stages)


def width_of_weights(state: Mapping[str, Tensor]) -> Mapping[str, int]:
    """Return the width that the weights of the stem show; empty without a stem."""
    return {"width": len(state["conv1.weight"])} if "conv1.weight" in state else {}


def build_resnet18(
    num_classes: int,
    *,
    stem_padding: Literal[1, 2] = 1,
    width: Annotated[int, Within(1, 1024)] = 64,
) -> ResNet:
    """Build the CIFAR variant of ResNet-18: no max-pooling, and a 3x3 stem with stride 1.

    Parameters
    ----------
    num_classes
        Rows of the last layer.
    stem_padding
        Padding of the stem in pixels. The code of the FeatureNorm authors pads by 2, so that a 32 x
        32 image gives maps of 34 x 34; other code pads by 1.
    width
        Channels of the first stage.
    """
    return ResNet(
        num_classes,
        (2, 2, 2, 2),
        width=width,
        stem_padding=stem_padding,
        shortcut=ProjectionShortcut,
    )


def build_resnet34(
    num_classes: int,
    *,
    stem_padding: Literal[1, 2] = 1,
    width: Annotated[int, Within(1, 1024)] = 64,
) -> ResNet:
    """Build the CIFAR variant of ResNet-34; see :func:`build_resnet18`."""
    return ResNet(
        num_classes,
        (3, 4, 6, 3),
        width=width,
        stem_padding=stem_padding,
        shortcut=ProjectionShortcut,
    )


def build_resnet20(num_classes: int) -> ResNet:
    """Build ResNet-20: three stages of 3 blocks, widths 16, 32, 64, shortcuts without weights."""
    return ResNet(num_classes, (3, 3, 3), width=16, shortcut=PaddingShortcut)


def build_resnet32(num_classes: int) -> ResNet:
    """Build ResNet-32: as ResNet-20, with 5 blocks per stage."""
    return ResNet(num_classes, (5, 5, 5), width=16, shortcut=PaddingShortcut)


def build_resnet44(num_classes: int) -> ResNet:
    """Build ResNet-44: as ResNet-20, with 7 blocks per stage."""
    return ResNet(num_classes, (7, 7, 7), width=16, shortcut=PaddingShortcut)


def build_resnet56(num_classes: int) -> ResNet:
    """Build ResNet-56: as ResNet-20, with 9 blocks per stage."""
    return ResNet(num_classes, (9, 9, 9), width=16, shortcut=PaddingShortcut)
