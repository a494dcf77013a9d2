"""The records that describe an architecture, and its parameters.

The parameters of an architecture, their defaults and their ranges are declared only in the
signature of its build function: a ``Literal`` lists the allowed values, ``Annotated[int, Within(1,
9)]`` gives the smallest and the largest.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.models.layout import Layout


@dataclass(frozen=True, slots=True)
class Within:
    """Inclusive bounds of an integer parameter.

    Parameters
    ----------
    low
        Smallest value.
    high
        Largest value.
    """

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Parameter:
    """An integer parameter of a build function.

    Parameters
    ----------
    name
        Name of the parameter.
    default
        Default value.
    values
        The allowed values.
    allowed
        Description of the allowed values, for messages.
    """

    name: str
    default: int
    values: frozenset[int] | range
    allowed: str

    def parse(self, text: str) -> int:
        """Parse a value.

        Raises
        ------
        InvalidInputError
            If the text is not an integer, or the value is not allowed.
        """
        # int() also accepts "1_6", " 16" and non-ASCII digits, but a network must have one name.
        value = int(text) if text.isascii() and text.isdigit() else None
        if value is None or value not in self.values:
            raise InvalidInputError(f"{self.name} must be {self.allowed}, not {text!r}")
        return value


def _nothing(_state: Mapping[str, Tensor]) -> Mapping[str, int]:
    return {}


def _anywhere(_device: torch.device) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class OriginalForm:
    """The original form of a network whose last layer is replaced by a plain linear layer.

    Parameters
    ----------
    build
        Builds the original network from the number of outputs.
    rows
        Name of the tensor that has one row per output, and the dimension of these rows; the name
        is empty if there is no such tensor.
    read
        Replaces the last layer by an equivalent linear layer, after the weights are loaded.
    path
        Path of the last layer in the original network.
    """

    build: Callable[[int], nn.Module]
    rows: tuple[str, int]
    read: Callable[[nn.Module], None]
    path: str


@dataclass(frozen=True)
class Architecture:
    """A family of networks.

    Parameters
    ----------
    name
        Key in the registry.
    build
        Builds a randomly initialised network from the number of classes; its keyword-only
        arguments are the parameters of the architecture.
    blocks
        Returns the blocks of a network in forward order: name, and path of the module whose output
        is the feature map of the block.
    head
        Path of the last linear layer.
    smallest_image
        Smallest height and width in pixels for which the feature map before the pooling is not
        empty.
    infer_parameters
        Infers the parameters that weights show, given weights with the names of this architecture.
    layouts
        Layout of the block outputs that are not ``(n, c, h, w)``, by name of the block.
    channels_last
        Whether the network supports the channels-last memory format.
    head_has_bias
        Whether the last layer has a bias of its own; if not, a constant zero bias is added.
    any_image
        Whether the network accepts all sizes from ``smallest_image`` on; if not, each size is
        tried first.
    traced_side
        Height and width in pixels of the images that the network was traced with, and so accepts;
        None if it was not traced.
    selected_block
        Name of the block that the authors of FeatureNorm selected for this network.
    ignored_prefixes
        Prefixes of tensor names that weights may contain and that are ignored.
    text
        What was found in a network that this package does not define, as a line for the user.
    channels
        Input channels: 3, or 1 for a network that gets the luma of the images.
    searched
        Paths of the blocks in older runs, which were created before all blocks of the network were
        known; empty if no such runs exist.
    original
        The original network, if ``build`` replaces its last layer; such a network cannot be
        trained.
    config
        For a network from a folder: the configuration, as JSON text, that it is built from. It is
        stored with the weights, so that the folder is not needed again. Otherwise empty.
    closed
        Whether the network runs outside of torch, so that neither gradients nor layers inside it
        are available, and its feature maps cannot be changed. It cannot be trained.
    placement
        Returns lines for the user if the network does not run on a device.
    bare
        Why no classifier was found in the network, which counts as an encoder; otherwise empty.
    width
        Length of a feature, if the network was followed; otherwise 0.
    """

    # Flat: all but four fields have a default that suits most networks, so entries stay short.
    name: str
    build: Callable[..., nn.Module]
    blocks: Callable[[nn.Module], Mapping[str, str]]
    head: str
    smallest_image: int = 1
    infer_parameters: Callable[[Mapping[str, Tensor]], Mapping[str, int]] = _nothing
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    channels_last: bool = True
    head_has_bias: bool = True
    any_image: bool = True
    traced_side: int | None = None
    selected_block: str | None = None
    ignored_prefixes: tuple[str, ...] = ()
    text: str = ""
    channels: int = 3
    searched: tuple[str, ...] = ()
    original: OriginalForm | None = None
    config: str = ""
    closed: bool = False
    placement: Callable[[torch.device], tuple[str, ...]] = _anywhere
    bare: str = ""
    width: int = 0

    def check_trainable(self) -> None:
        """Refuse a network without a classifier, or whose last layer was replaced by a linear one.

        Raises
        ------
        InvalidInputError
            If it is such a network.
        """
        if self.bare:
            raise InvalidInputError(self.bare)
        if self.closed:
            raise InvalidInputError(
                f"networks of {self.name} files cannot be trained here: they run outside of torch; "
                "train the network with your own code and import it: ood import"
            )
        if self.original is not None:
            raise InvalidInputError(
                f"{self.name} cannot be trained by ood: its last layer {self.original.path} is not "
                "a plain linear layer; train it with your own code, then run: ood import"
            )

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Parameters of the build function by name.

        Raises
        ------
        TypeError
            If the build function declares one without a default, or with a type without a range.
        """
        hints = get_type_hints(self.build, include_extras=True)
        found = {}
        for name, declared in inspect.signature(self.build).parameters.items():
            if declared.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            if declared.default is inspect.Parameter.empty:
                raise TypeError(f"parameter {name} of {self.name} has no default")
            found[name] = _declared(name, declared.default, hints[name])
        return MappingProxyType(found)

    def spec(self, texts: Mapping[str, str]) -> "ArchitectureSpec":
        """Return the architecture with parameters; those that are not given have their defaults.

        Parameters
        ----------
        texts
            Values as text, by name.

        Raises
        ------
        InvalidInputError
            If a value is not allowed.
        """
        params = {name: parameter.default for name, parameter in self.parameters.items()}
        for name, text in texts.items():
            params[name] = self.parameters[name].parse(text)
        return ArchitectureSpec(self, MappingProxyType(params))


def _declared(name: str, default: int, hint: object) -> Parameter:
    if get_origin(hint) is Literal:
        values = get_args(hint)
        return Parameter(name, default, frozenset(values), " or ".join(map(str, values)))
    if get_origin(hint) is Annotated and isinstance(bounds := get_args(hint)[1], Within):
        return Parameter(
            name,
            default,
            range(bounds.low, bounds.high + 1),
            f"an integer from {bounds.low} to {bounds.high}",
        )
    raise TypeError(f"parameter {name} is neither a Literal nor Annotated with Within")


@dataclass(frozen=True)
class ArchitectureSpec:
    """An architecture with a value for every parameter; ``str`` gives its canonical text.

    Parameters
    ----------
    architecture
        The architecture.
    params
        Value of every parameter, by name.
    """

    architecture: Architecture
    params: Mapping[str, int]

    @property
    def name(self) -> str:
        """Name of the architecture, without parameters."""
        return self.architecture.name

    @property
    def canonical(self) -> str:
        """The canonical text: without defaults, keys sorted."""
        chosen = [
            f"{name}={value}"
            for name, value in sorted(self.params.items())
            if value != self.architecture.parameters[name].default
        ]
        return f"{self.name}:{','.join(chosen)}" if chosen else self.name

    def __str__(self) -> str:
        return self.canonical

    def build(self, num_classes: int) -> nn.Module:
        """Build a network with random weights from torch's global generator."""
        return self.architecture.build(num_classes, **self.params)


def numbered_blocks(module: nn.Module, stages: Iterable[str]) -> Mapping[str, str]:
    """Name the children of every stage ``stage.position``, both counted from 1.

    Parameters
    ----------
    module
        The network.
    stages
        Paths of the stages in forward order.

    Returns
    -------
    Mapping
        Path of every child, by name, in forward order.
    """
    return {
        f"{stage}.{position}": f"{path}.{child}"
        for stage, path in enumerate(stages, start=1)
        for position, (child, _) in enumerate(module.get_submodule(path).named_children(), start=1)
    }
