"""Plain convolutional networks.

References
----------
Simonyan, Zisserman. "Very Deep Convolutional Networks for Large-Scale Image Recognition". ICLR
2015, arXiv:1409.1556 (configurations A and D of table 1).
"""

import math
from collections.abc import Mapping

import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation gives it
from torch import Tensor, nn

# Channels of the convolutions; a pooling follows each group.
_VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_VGG16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
_HIDDEN = 512


class VGG11(nn.Module):
    """Eight 3x3 convolutions with ReLU and five max-poolings, without batch normalisation.

    Parameters
    ----------
    num_classes
        Rows of the last layer.

    Notes
    -----
    Each ReLU is a separate module and returns a new tensor, so that a hook on it gets the feature
    map before the pooling. For images larger than 32 x 32, the last feature map is averaged over
    positions before the classifier; for 32 x 32 it has a single position.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in _VGG11:
            for wanted in stage:
                layers += [nn.Conv2d(channels, wanted, 3, padding=1), nn.ReLU()]
                channels = wanted
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(_HIDDEN, num_classes),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (9 * module.out_channels)))
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, k)`` of normalised images ``(n, 3, h, w)``."""
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)  # (n, 512)
        return self.classifier(x)


def vgg11_blocks(module: nn.Module) -> Mapping[str, str]:
    """Name the convolutions of a :class:`VGG11` ``conv1`` to ``conv8``.

    Notes
    -----
    The feature map of a convolution is the output of its ReLU, before any pooling. The exception is
    ``conv4``, whose map is taken after the max-pooling, as in the code of the FeatureNorm authors.
    """
    layers = module.get_submodule("features").children()
    relus = [at for at, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
    blocks = {f"conv{number}": f"features.{at}" for number, at in enumerate(relus, start=1)}
    blocks["conv4"] = f"features.{relus[3] + 1}"
    return blocks


def build_vgg11(num_classes: int) -> VGG11:
    """Build VGG-11."""
    return VGG11(num_classes)


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions with batch normalisation and ReLU, five max-poolings, a classifier.

    Parameters
    ----------
    num_classes
        Rows of the last layer.
    hidden
        Number of hidden layers of the classifier, 0 or 2.

    Notes
    -----
    Tensor names are those of public checkpoints for CIFAR: convolutions with bias under
    ``features``, and one linear layer, or three with 512 units as in :class:`VGG11`, under
    ``classifier``. For images larger than 32 x 32, the last feature map is averaged over positions.
    """

    def __init__(self, num_classes: int, *, hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in _VGG16:
            for wanted in stage:
                layers += [nn.Conv2d(channels, wanted, 3, padding=1), nn.BatchNorm2d(wanted)]
                layers.append(nn.ReLU())
                channels = wanted
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        last = nn.Linear(_HIDDEN, num_classes)
        between: list[nn.Module] = []
        for _ in range(hidden):
            between += [nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Dropout(0.5)]
        self.classifier = nn.Sequential(*between, last) if hidden else last
        for module in self.features:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (9 * module.out_channels)))
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(n, k)`` of normalised images ``(n, 3, h, w)``."""
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)  # (n, 512)
        return self.classifier(x)


def vgg16_blocks(module: nn.Module) -> Mapping[str, str]:
    """Name the convolutions of a :class:`VGG16` ``conv1`` to ``conv13``; maps follow the ReLU."""
    layers = module.get_submodule("features").children()
    relus = [at for at, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
    return {f"conv{number}": f"features.{at}" for number, at in enumerate(relus, start=1)}


def build_vgg16_bn(num_classes: int) -> VGG16:
    """Build VGG-16 with batch normalisation and one linear layer."""
    return VGG16(num_classes, hidden=0)


def build_vgg16_bn_mlp(num_classes: int) -> VGG16:
    """Build VGG-16 with batch normalisation and three linear layers."""
    return VGG16(num_classes, hidden=2)
