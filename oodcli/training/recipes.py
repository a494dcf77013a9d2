"""Published training schedules, and explicit changes of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import cos, pi
from types import MappingProxyType
from typing import Any

from oodcli.errors import InvalidInputError


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained with cross-entropy and stochastic gradient descent.

    Parameters
    ----------
    name
        Key in the registry.
    source
        Where the schedule is published.
    epochs
        Passes over the training images.
    batch_size
        Images a step; the last batch of an epoch may be smaller.
    lr
        Learning rate of the first epoch.
    momentum
        Momentum of the gradient.
    weight_decay
        L2 penalty on all parameters.
    nesterov
        Whether the momentum is Nesterov's.
    schedule
        ``step``: the rate is divided by ten after each milestone; ``cosine``: it falls to zero
        along half a cosine, step by step, after a linear warm-up over the first tenth of the steps.
    milestones
        Fractions of all epochs after which the rate falls, for ``step``.
    flip
        Whether images are mirrored at random.
    crop_padding
        Zero pixels put on every side before a random crop of the image's size; 0 for no crop.
    mean, std
        Normalisation of the three channels.
    """

    name: str
    source: str
    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: str = "step"
    milestones: tuple[float, ...] = (0.5, 0.75, 0.9)
    flip: bool = True
    crop_padding: int = 4
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise InvalidInputError(
                    f"--{name.replace('_', '-')} must be at least 1, not {value}"
                )
        if not 0 < self.lr < float("inf"):
            raise InvalidInputError(f"--lr must be a positive number, not {self.lr}")
        for name in ("weight_decay", "momentum"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise InvalidInputError(
                    f"--{name.replace('_', '-')} must not be negative, nor infinite: {value}"
                )

    def changed(self, **changes: float | None) -> "Recipe":
        """Return the recipe with every change that is not None."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as it is stored with a run."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Recipe":
        """Read a stored recipe."""
        values: dict[str, Any] = {
            f.name: tuple(content[f.name]) if isinstance(content[f.name], list) else content[f.name]
            for f in fields(cls)
            if f.name in content
        }
        return cls(**values)

    def learning_rate(self, epoch: int, progress: float) -> float:
        """Return the learning rate.

        Parameters
        ----------
        epoch
            Epochs finished so far.
        progress
            Share of all steps finished so far, from 0 to 1.
        """
        if self.schedule == "cosine":
            return self.lr * _cosine(progress)
        passed = sum(epoch >= round(share * self.epochs) for share in self.milestones)
        return self.lr * 0.1**passed


def _cosine(progress: float) -> float:
    warm_up = 0.1
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + cos(pi * (progress - warm_up) / (1 - warm_up)))


_FEATURENORM = "Yu et al., CVPR 2023"
_DIGITS = Recipe(
    "digits",
    "this tool; small images on a processor in under a minute",
    epochs=10,
    batch_size=32,
    lr=0.1,
    nesterov=True,
    schedule="cosine",
    flip=False,
    crop_padding=2,
)
_RESNET18 = Recipe("featurenorm-resnet18", _FEATURENORM, epochs=100)
_WRN = Recipe("featurenorm-wrn28-10", _FEATURENORM, epochs=200, milestones=(0.5, 0.75))
_VGG11 = Recipe("featurenorm-vgg11", _FEATURENORM, epochs=100, lr=0.05)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (_RESNET18, _WRN, _VGG11, _DIGITS)}
)


def default_architecture(data_name: str) -> str:
    """Return the network that is trained on a data set when none is named."""
    return "resnet18:width=16" if data_name == "digits" else "resnet18"


def recipe_for(arch: str, data_name: str) -> Recipe:
    """Return the schedule of the paper for an architecture.

    Parameters
    ----------
    arch
        Name of the architecture, without parameters.
    data_name
        Name of the data set; ``digits`` has a schedule of its own.

    Notes
    -----
    The paper trained ResNet-18, WRN-28-10 and VGG-11. Other residual networks take the schedule of
    ResNet-18, other wide ones that of WRN-28-10.
    """
    if data_name == "digits":
        return _DIGITS
    if arch.startswith("wrn"):
        return _WRN
    if arch.startswith("vgg"):
        return _VGG11
    return _RESNET18
