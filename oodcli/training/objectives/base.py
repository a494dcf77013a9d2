"""What a training objective is, and how one is named on the command line.

An objective is a frozen record: its fields are what a user can choose, as in ``t2fnorm:tau=0.05``.
It says how many views of each image it wants, may change the last layer of the network before
training, may bring layers of its own that are gone afterwards, and turns what the network gives
into a loss. Its prediction forward is the forward of the network that it has changed.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    get_type_hints,
)

from torch import Tensor, nn

from oodcli.errors import UnknownNameError
from oodcli.specs import canonical, parse_pairs, parse_value


class StepOutput(NamedTuple):
    """What a training step knows of a batch of ``m`` images, all views one after the other.

    Parameters
    ----------
    logits
        Output of the network, ``(m, k)``.
    features
        Input of the last layer, ``(m, d)``; empty unless the objective looks at it. Gradients flow
        through the objective's own layers alone.
    maps
        Output of the last block, rectified, ``(m, c, h, w)``; empty unless it is looked at. As for
        features, gradients flow through the objective's own layers alone.
    extras
        What the objective's own layers make of features and maps.
    """

    logits: Tensor
    features: Tensor
    maps: Tensor
    extras: tuple[Tensor, ...] = ()


class Extras(Protocol):
    """Layers of an objective, which are trained with the network and gone afterwards."""

    def __call__(self, features: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        """Return what the loss needs of features ``(m, d)`` and maps ``(m, c, h, w)``."""


class Objective(Protocol):
    """What is minimised, and what it needs of the network."""

    @property
    def views(self) -> int:
        """How many independently augmented views of every image a step sees."""

    @property
    def looks_at(self) -> frozenset[Literal["features", "maps"]]:
        """What it needs beside the logits."""

    @property
    def trains_last_layer(self) -> bool:
        """Whether the last layer is trained; a linear probe takes its place otherwise."""

    @property
    def compares_images(self) -> bool:
        """Whether the loss is of pairs of images, and not a mean over images."""

    def attach(self, module: nn.Module, head: str, /) -> None:
        """Change the network, whose last layer is at ``head``, before its training."""

    def extras(self, features: int, channels: int, /) -> nn.Module | None:
        """Make layers of its own for features and maps of these widths; see :class:`Extras`."""

    def loss(self, output: StepOutput, labels: Tensor, /) -> Tensor:
        """Return the mean loss of a batch with labels ``(m,)``, in float32."""


class PlainObjective:
    """An objective with one view that looks at the logits alone; the others change what differs."""

    views: ClassVar[int] = 1
    looks_at: ClassVar[frozenset[Literal["features", "maps"]]] = frozenset()
    trains_last_layer: ClassVar[bool] = True
    compares_images: ClassVar[bool] = False

    def attach(self, module: nn.Module, head: str, /) -> None:
        """Leave the network as it is."""

    def extras(self, features: int, channels: int, /) -> nn.Module | None:  # noqa: ARG002
        """Bring no layers."""
        return None


@dataclass(frozen=True, slots=True)
class ObjectiveEntry:
    """What the registry knows of an objective.

    Parameters
    ----------
    type
        The class.
    title
        Its name in papers.
    paper
        Authors, venue and year.
    """

    type: type[Any]
    title: str
    paper: str


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective as named on the command line.

    Parameters
    ----------
    name
        Key in the registry.
    objective
        The objective.
    canonical
        Its name with its parameters, defaults left out and keys sorted.
    """

    name: str
    objective: Objective
    canonical: str


def parse_objective(text: str, registry: Mapping[str, ObjectiveEntry]) -> ObjectiveSpec:
    """Read ``name[:key=value,…]``.

    Parameters
    ----------
    text
        What the user wrote.
    registry
        The objectives there are.

    Raises
    ------
    UnknownNameError
        If there is no such objective, or it has no such parameter.
    InvalidInputError
        If a value cannot be one of its parameter.
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
    kept: dict[str, Any] = {k: value for k, value in given.items() if value != defaults[k]}
    return ObjectiveSpec(name, kind(**kept), canonical(name, kept))
