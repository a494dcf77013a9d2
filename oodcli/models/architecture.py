"""What an architecture is.

The parameters of an architecture, their defaults and their ranges are those of its build function,
and written nowhere else: a ``Literal`` lists the allowed values, ``Annotated[int, Within(1, 9)]``
gives the smallest and the largest.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from oodcli.errors import InvalidInputError
from oodcli.models.layout import Layout


@dataclass(frozen=True, slots=True)
class Within:
    """Bounds of an integer parameter, both included.

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
    """One integer that can be chosen when a network is built.

    Parameters
    ----------
    name
        How it is written.
    default
        Its value where none is given.
    values
        The values that are allowed.
    allowed
        The same in words, for messages.
    """

    name: str
    default: int
    values: frozenset[int] | range
    allowed: str

    def parse(self, text: str) -> int:
        """Read a value.

        Raises
        ------
        InvalidInputError
            If the text is not an integer, or not an allowed one.
        """
        # int() also takes "1_6", " 16" and other scripts' digits, and one network needs one name.
        value = int(text) if text.isascii() and text.isdigit() else None
        if value is None or value not in self.values:
            raise InvalidInputError(f"{self.name} is {self.allowed}, not {text!r}")
        return value


def _nothing(_state: Mapping[str, Tensor]) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True)
class AsWritten:
    """A network whose last layer is not written as an ordinary linear one.

    Parameters
    ----------
    build
        Makes it as it is written, from the number of outputs.
    rows
        Name of the tensor that has a row for each output, and the dimension of these; the name is
        empty if there is none.
    read
        Puts a linear layer in the place of the last one, once the weights are there.
    path
        Path of the last layer as it is written.
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
        Makes a network with fresh weights from the number of classes; its keyword-only arguments
        are the parameters of the architecture.
    blocks
        Gives the blocks of a network in forward order: name, and path of the module whose output is
        the map of the block.
    head
        Path of the last linear layer.
    smallest_image
        Least height and width that leave something to pool, in pixels.
    visible
        Reads those parameters that show in weights, which have this architecture's own names.
    layouts
        How the outputs of blocks lie, by name of the block, where they are not ``(n, c, h, w)``.
    channels_last
        Whether the network takes images that lie channels-last in memory.
    head_has_bias
        Whether the last layer has a bias of its own; if not, it is built with one that stays zero.
    any_image
        Whether it takes all images from ``smallest_image`` on; if not, a size has to be tried.
    followed_at
        Height and width of the images that it was followed at, in pixels, and so takes; None where
        it was not.
    selected_block
        Name of the block that FeatureNorm's authors selected for this network.
    spare
        How the names of tensors begin that weights may hold and that are left out.
    text
        What was found in a network that the tool did not know, in a line for the user.
    channels
        Channels of its images: 3; 1 where it takes their luma.
    searched
        Paths of the blocks that runs have which were made before all blocks of the network were
        known; empty where there are none such.
    written
        The network as it is written, where ``build`` makes it with another last layer; such a
        network cannot be trained.
    config
        The configuration, as JSON text, that a network from a folder is built from; it is stored
        with the weights, so that the folder is not needed again. Empty of others.
    """

    # Flat: all but four have a default that suits most networks, and an entry names its exceptions.
    name: str
    build: Callable[..., nn.Module]
    blocks: Callable[[nn.Module], Mapping[str, str]]
    head: str
    smallest_image: int = 1
    visible: Callable[[Mapping[str, Tensor]], Mapping[str, int]] = _nothing
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    channels_last: bool = True
    head_has_bias: bool = True
    any_image: bool = True
    followed_at: int | None = None
    selected_block: str | None = None
    spare: tuple[str, ...] = ()
    text: str = ""
    channels: int = 3
    searched: tuple[str, ...] = ()
    written: AsWritten | None = None
    config: str = ""

    def check_trainable(self) -> None:
        """Refuse a network whose last layer was only read, and could not be trained as it is.

        Raises
        ------
        InvalidInputError
            If it is such a network.
        """
        if self.written is not None:
            raise InvalidInputError(
                f"{self.name} cannot be trained here: its last layer {self.written.path} is no "
                "ordinary linear layer; train it with your own code and take it in: ood import"
            )

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Parameters of the build function by name.

        Raises
        ------
        TypeError
            If the build function declares one without default, or with a type that has no range.
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
        """Choose parameters; the others keep their defaults.

        Parameters
        ----------
        texts
            Values as they are written, by name.

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
    """An architecture with a value for every parameter; its text is the canonical one.

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
        """The one way to write it: defaults left out, keys sorted."""
        chosen = [
            f"{name}={value}"
            for name, value in sorted(self.params.items())
            if value != self.architecture.parameters[name].default
        ]
        return f"{self.name}:{','.join(chosen)}" if chosen else self.name

    def __str__(self) -> str:
        return self.canonical

    def build(self, num_classes: int) -> nn.Module:
        """Make a network with fresh weights, drawn from torch's global generator."""
        return self.architecture.build(num_classes, **self.params)


def numbered_blocks(module: nn.Module, stages: Iterable[str]) -> Mapping[str, str]:
    """Name the children of every stage ``stage.position``, counted from 1.

    Parameters
    ----------
    module
        The network.
    stages
        Paths of the stages in forward order.
    """
    return {
        f"{stage}.{position}": f"{path}.{child}"
        for stage, path in enumerate(stages, start=1)
        for position, (child, _) in enumerate(module.get_submodule(path).named_children(), start=1)
    }
