"""The interface of a training objective, and its syntax on the command line.

An objective is a frozen dataclass; its fields are the parameters of the user, as in
``t2fnorm:tau=0.05``. It declares how many views of each image it needs, may change the last layer
of the network before training, may add layers of its own that are discarded after training, and
computes the loss from the outputs of the network. Predictions are those of the changed network.
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
    """Outputs of a training step for a batch of ``m`` images, with the views concatenated.

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
        Outputs of the objective's own layers, computed from features and maps.
    """

    logits: Tensor
    features: Tensor
    maps: Tensor
    extras: tuple[Tensor, ...] = ()


class Extras(Protocol):
    """Layers of an objective, which are trained with the network and discarded afterwards."""

    def __call__(self, features: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        """Compute inputs of the loss from features ``(m, d)`` and maps ``(m, c, h, w)``."""


class Objective(Protocol):
    """A training objective: the loss, and its requirements on the network."""

    @property
    def views(self) -> int:
        """Number of independently augmented views of every image in a step."""

    @property
    def needs(self) -> frozenset[Literal["features", "maps"]]:
        """Tensors that the objective needs besides the logits."""

    @property
    def trains_last_layer(self) -> bool:
        """Whether the last layer is trained; if not, it is replaced by a linear probe."""

    @property
    def compares_images(self) -> bool:
        """Whether the loss depends on pairs of images, instead of being a mean over images."""

    def attach(self, module: nn.Module, head: str, /) -> None:
        """Change the network, whose last layer is at ``head``, before its training."""

    def extras(self, features: int, channels: int, /) -> nn.Module | None:
        """Build the objective's own layers, see :class:`Extras`; None if it has none.

        Parameters
        ----------
        features
            Length ``d`` of a feature vector.
        channels
            Number of channels ``c`` of the last feature map.
        """

    def loss(self, output: StepOutput, labels: Tensor, /) -> Tensor:
        """Return the mean loss of a batch with labels ``(m,)``, in float32."""


class PlainObjective:
    """Defaults of an objective: one view, only logits needed, no layers of its own."""

    views: ClassVar[int] = 1
    needs: ClassVar[frozenset[Literal["features", "maps"]]] = frozenset()
    trains_last_layer: ClassVar[bool] = True
    compares_images: ClassVar[bool] = False

    def attach(self, module: nn.Module, head: str, /) -> None:
        """Leave the network unchanged."""

    def extras(self, features: int, channels: int, /) -> nn.Module | None:  # noqa: ARG002
        """Return None: no layers."""
        return None


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
