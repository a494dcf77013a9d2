"""The interface of a training objective, and its syntax on the command line.

An objective is a frozen dataclass; its fields are the parameters of the user, as in
``t2fnorm:tau=0.05``. It declares how many views of each image it needs, may change the last layer
of the network before training, may keep further heads on the features in the weights, may add
layers of its own that are discarded after training, and computes the loss from the outputs of the
network. Predictions are those of the changed network. What an objective learns without gradients,
such as prototypes, are buffers of its own layers: they are stored after every epoch, and equal in
all processes if the loss is computed on the whole batch (``compares_images``).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    get_type_hints,
)

import torch
from torch import Tensor, nn

from oodcli.errors import UnknownNameError
from oodcli.models import keep_heads
from oodcli.specs import canonical, parse_pairs, parse_value


class StepOutput(NamedTuple):
    """Outputs of a training step for a batch, with the views concatenated to ``m`` rows.

    Parameters
    ----------
    logits
        Output of the network, ``(m, k)``.
    features
        Input of the last layer, ``(m, d)``, detached; empty unless the objective needs it.
        Gradients flow only through ``extras``.
    maps
        Output of the last block, rectified, ``(m, c, h, w)``, detached; empty unless the objective
        needs it. Gradients flow only through ``extras``.
    extras
        Outputs of the kept heads, in their order, ``(m, o)`` each in float32; then those of the
        objective's own layers, computed from features and maps.
    draws
        Uniform random numbers from 0 to 1, ``(m, r)`` for an objective with ``r`` draws; the same
        for an image however many processes train together.
    state
        The objective's own layers, whose buffers the loss may read and replace.
    last_layer
        The last layer of the network, for features ``(m, d)`` that are not those of images.
    """

    logits: Tensor
    features: Tensor
    maps: Tensor
    extras: tuple[Tensor, ...] = ()
    draws: Tensor | None = None
    state: nn.Module | None = None
    last_layer: Callable[[Tensor], Tensor] | None = None

    def split(self, rows: int) -> tuple["StepOutput", "StepOutput"]:
        """Return the outputs of the first rows, and those of the others."""
        first, others = (
            StepOutput(
                self.logits[at],
                self.features[at],
                self.maps[at],
                tuple(extra[at] for extra in self.extras),
            )
            for at in (slice(rows), slice(rows, None))
        )
        return first, others


class Extras(Protocol):
    """Layers of an objective, which are trained with the network and discarded afterwards."""

    def __call__(self, features: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        """Compute inputs of the loss from features ``(m, d)`` and maps ``(m, c, h, w)``."""


class StartsFromClassMeans(Protocol):
    """Layers of an objective with a state that the first epoch starts from."""

    def start(self, features: Tensor, labels: Tensor, /) -> None:
        """Set the state.

        Parameters
        ----------
        features
            Features of the validation images, or of the training images if there are none, by the
            initial network without augmentation, ``(n, d)``.
        labels
            Their classes, ``(n,)``.
        """


class BeginsEpochs(Protocol):
    """Layers of an objective that depend on the epoch, or draw random numbers of their own."""

    def begin(self, share: float, seed: int, /) -> None:
        """Begin an epoch.

        Parameters
        ----------
        share
            Share of the epochs of the training that are finished, from 0 to less than 1.
        seed
            Seed of the random numbers of the epoch, equal in all processes.
        """


class Objective(Protocol):
    """A training objective: the loss, and its requirements on the network."""

    @property
    def views(self) -> int:
        """Number of independently augmented views of every image in a step."""

    @property
    def copies(self) -> int:
        """Number of views that :meth:`derived` makes of each of these; 1 if it makes none.

        The accuracy on training images counts the first of them only.
        """

    def draws(self, height: int, width: int, /) -> int:
        """Return how many uniform random numbers a step needs per view.

        Parameters
        ----------
        height, width
            Those of the images.
        """

    @property
    def kept(self) -> Mapping[str, int]:
        """Number of outputs of every kept head, by name; :meth:`attach` adds these heads."""

    @property
    def needs(self) -> frozenset[Literal["features", "maps"]]:
        """Tensors that the objective needs besides the logits."""

    @property
    def trains_last_layer(self) -> bool:
        """Whether the last layer is trained; if not, it is replaced by a linear probe."""

    @property
    def compares_images(self) -> bool:
        """Whether the loss depends on the batch as a whole, instead of being a mean over images."""

    @property
    def decays_last_layer(self) -> bool:
        """Whether the last layer has the weight decay of the others, if the recipe has no own."""

    def check(self, size: tuple[int, int], /) -> None:
        """Refuse images of a height and width that the objective cannot be trained on.

        Raises
        ------
        InvalidInputError
            If it cannot.
        """

    def derived(self, views: list[Tensor], /) -> list[Tensor]:
        """Return the augmented views and those made of them, the original ones first.

        Parameters
        ----------
        views
            uint8 ``(n, 3, h, w)`` each.
        """

    @property
    def accepts_soft_labels(self) -> bool:
        """Whether the loss also takes probabilities of classes, as mixed images have."""

    def attach(self, module: nn.Module, head: str, /) -> None:
        """Change the network, whose last layer is at ``head``, before its training."""

    def extras(self, features: int, channels: int, classes: int, /) -> nn.Module | None:
        """Build the objective's own layers, see :class:`Extras`; None if it has none.

        Parameters
        ----------
        features
            Length ``d`` of a feature vector.
        channels
            Number of channels ``c`` of the last feature map.
        classes
            Number of classes.
        """

    def loss(self, output: StepOutput, labels: Tensor, /) -> Tensor:
        """Return the mean loss of a batch, in float32.

        Parameters
        ----------
        output
            Outputs of the training step.
        labels
            Class of every image, int64 ``(m,)``; if images are mixed, which only objectives with
            ``accepts_soft_labels`` see, probabilities of the classes, float32 ``(m, k)``.
        """


class PlainObjective:
    """Defaults of an objective: one view, only logits needed, no layers of its own."""

    views: ClassVar[int] = 1
    copies: ClassVar[int] = 1
    kept: ClassVar[Mapping[str, int]] = MappingProxyType({})
    needs: ClassVar[frozenset[Literal["features", "maps"]]] = frozenset()
    trains_last_layer: ClassVar[bool] = True
    compares_images: ClassVar[bool] = False
    accepts_soft_labels: ClassVar[bool] = False
    decays_last_layer: ClassVar[bool] = True

    def check(self, size: tuple[int, int], /) -> None:
        """Accept every size."""

    def draws(self, height: int, width: int, /) -> int:  # noqa: ARG002
        """Return 0: none."""
        return 0

    def derived(self, views: list[Tensor], /) -> list[Tensor]:
        """Return the views unchanged."""
        return views

    def attach(self, module: nn.Module, head: str, /) -> None:
        """Add the kept heads, if there are any."""
        if self.kept:
            keep_heads(module, head, self.kept)

    def extras(self, features: int, channels: int, classes: int, /) -> nn.Module | None:  # noqa: ARG002
        """Return None: no layers."""
        return None


class OutlierLoss(PlainObjective, ABC):
    """An objective with a loss of outliers: images that belong to no class.

    Every step has a batch of ID images and a batch of outliers, in one forward pass. The loss of
    the step is that of ID images plus that of outliers, each a mean over its images; if
    ``pooled``, it is the mean over all images of the step.
    """

    accepts_soft_labels: ClassVar[bool] = True
    pooled: ClassVar[bool] = False
    """Whether every image of a step has the same weight, instead of both means."""

    @abstractmethod
    def outlier_loss(self, output: StepOutput, targets: Tensor, /) -> Tensor:
        """Return the mean loss of outliers, ``()``, in float32.

        Parameters
        ----------
        output
            Outputs of the network for the outliers.
        targets
            Probability of every class, ``(m, k)``: the same for all of them, except for the share
            of an ID image in a mixed one.
        """


class SynthesisObjective(OutlierLoss):
    """An objective that makes an outlier of every image of a step, with the network of that step.

    What decides is the gradient of the logit of its class with respect to the image, of the network
    in evaluation mode, before the step.
    """

    @abstractmethod
    def synthesised(
        self,
        images: Tensor,
        gradients: Tensor,
        std: Tensor,
        draws: Tensor | None,
        progress: float,
        /,
    ) -> Tensor:
        """Return the outliers of images, from 0 to 255 as these, ``(n, 3, h, w)``.

        Parameters
        ----------
        images
            Augmented images before their normalisation, uint8 or float32 ``(n, 3, h, w)``.
        gradients
            Gradients with respect to the normalised images, float32 ``(n, 3, h, w)``.
        std
            Standard deviation of the channels in the normalisation, for pixels from 0 to 1,
            ``(1, 3, 1, 1)``.
        draws
            Uniform random numbers from 0 to 1, ``(n, r)``; None if the objective needs none.
        progress
            Number of the epoch as a share of all epochs, from above 0 to 1.
        """


class OutlierObjective(OutlierLoss):
    """An objective that is trained with outliers from a set, or made without the network."""

    paired: ClassVar[bool] = False
    """Whether each outlier is mixed with one ID image, so that there are equally many of both."""

    def shown(
        self,
        images: Tensor,  # noqa: ARG002
        outliers: Tensor,
        generator: torch.Generator,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the network sees of the outliers of a step.

        Parameters
        ----------
        images, outliers
            The augmented images of the whole step, uint8 ``(n, 3, h, w)`` and ``(m, 3, h, w)``;
            ``n == m`` if ``paired``.
        generator
            Random generator for the outliers, on the device of the images.

        Returns
        -------
        pixels
            ``(m, 3, h, w)``, uint8 or float32 from 0 to 255.
        shares
            Share of the ID image in each of them, from 0 to 1, ``(m,)``; None for outliers that
            contain nothing of ID images.
        """
        return outliers, None


@dataclass(frozen=True, slots=True)
class ObjectiveEntry:
    """An entry of the registry of objectives.

    Parameters
    ----------
    type
        The class.
    title
        Name of the objective in papers.
    paper
        Authors, venue and year.
    """

    type: type[Any]
    title: str
    paper: str


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective with its name on the command line.

    Parameters
    ----------
    name
        Key in the registry.
    objective
        The objective.
    canonical
        Name with parameters, without defaults, keys sorted.
    """

    name: str
    objective: Objective
    canonical: str


def parse_objective(text: str, registry: Mapping[str, ObjectiveEntry]) -> ObjectiveSpec:
    """Parse ``name[:key=value,…]``.

    Parameters
    ----------
    text
        Text of the user.
    registry
        The available objectives by name.

    Raises
    ------
    UnknownNameError
        If the objective or a parameter is unknown.
    InvalidInputError
        If a value is invalid for its parameter.
    """
    name, colon, pairs = text.partition(":")
    if name not in registry:
        raise UnknownNameError.among("objective", name, registry)
    kind = registry[name].type
    hints = get_type_hints(kind)
    defaults = {each.name: each.default for each in fields(kind)}
    assert MISSING not in defaults.values()
    texts = parse_pairs("objective", text, name, pairs if colon else None, defaults)
    given = {key: parse_value(f"{name}:{key}", value, hints[key]) for key, value in texts.items()}
    changed: dict[str, Any] = {k: value for k, value in given.items() if value != defaults[k]}
    return ObjectiveSpec(name, kind(**changed), canonical(name, changed))
